"""What becomes of a job. The rules, pure: no I/O, no clock, no randomness.

An *outcome* is what running the code came to; an *ending* is what becomes of the job:

    Returned            → Succeeded
    Raised, TimedOut    → Retrying while attempts are left and Retry covers the error, else Dead("failed")
    AskedLater          → Retrying while attempts are left, else Dead("failed")
    Rejected            → Dead("rejected")
    Unencodable         → Dead("unencodable")    the code ran; running it again would not help
    Unfit               → Dead("arguments")      the arguments do not fit this task
    Overdue             → Dead("expired")
    Undecodable         → Dead("undecodable")
    Puzzling            → Deferred while patience lasts, else Dead("unknown task" or "unknown version")
    Stopped             → Cancelled

A job that crashed its worker too often is buried by `reclaim` itself, with the reason "poison".
"""

from __future__ import annotations

from typing import Literal

import msgspec

from asyncq.backoff import Retry

__all__ = [
    "DEFER",
    "REASONS",
    "STATES",
    "AskedLater",
    "Cancelled",
    "Dead",
    "Deferred",
    "Ending",
    "Outcome",
    "Overdue",
    "Puzzling",
    "Raised",
    "Rejected",
    "Retrying",
    "Returned",
    "State",
    "Stopped",
    "Succeeded",
    "TimedOut",
    "Undecodable",
    "Unencodable",
    "Unfit",
    "decide",
    "describe",
    "state_of_dead",
    "storable",
]

State = Literal["scheduled", "queued", "running", "retrying", "succeeded", "failed", "cancelled", "expired"]
STATES: tuple[State, ...] = (
    "scheduled",
    "queued",
    "running",
    "retrying",
    "succeeded",
    "failed",
    "cancelled",
    "expired",
)

REASONS = {
    "failed": "it raised or timed out, and no attempt is left or none is allowed",
    "rejected": "the task raised Reject",
    "unencodable": "its result cannot be stored: not a type msgpack knows, or larger than max_payload",
    "arguments": "its arguments do not fit the task's signature",
    "expired": "no worker could start it before its expires",
    "undecodable": "its bytes are not a job",
    "unknown task": "no worker that saw it knows the task",
    "unknown version": "a newer asyncq wrote it, and no worker that saw it can read it",
    "poison": "its worker crashed or was lost while running it, max_crashes times",
}
"""Every reason in the dead-letter stream, and what it means."""

DEFER = Retry(attempts=9, base=5, factor=2, max=300)
"""Patience with a job this worker does not understand: during a deploy another one may. Some 10 to 15 minutes."""


class Returned(msgspec.Struct, frozen=True, gc=False):
    """The code returned. `value` is encoded; empty when no result is kept."""

    value: bytes


class Raised(msgspec.Struct, frozen=True):
    """The code raised. `covered`: whether its Retry covers the error, where only a child process could tell."""

    error: BaseException
    traceback: str
    covered: bool | None = None


class TimedOut(msgspec.Struct, frozen=True):
    seconds: float
    traceback: str


class AskedLater(msgspec.Struct, frozen=True):
    delay_ms: int
    reason: str


class Rejected(msgspec.Struct, frozen=True):
    reason: str


class Unencodable(msgspec.Struct, frozen=True):
    text: str


class Unfit(msgspec.Struct, frozen=True):
    text: str


class Overdue(msgspec.Struct, frozen=True):
    late_ms: int


class Undecodable(msgspec.Struct, frozen=True):
    text: str


class Puzzling(msgspec.Struct, frozen=True):
    reason: Literal["unknown task", "unknown version"]
    text: str


class Stopped(msgspec.Struct, frozen=True):
    """Somebody cancelled the job and its code has stopped."""


Outcome = (
    Returned
    | Raised
    | TimedOut
    | AskedLater
    | Rejected
    | Unencodable
    | Unfit
    | Overdue
    | Undecodable
    | Puzzling
    | Stopped
)


class Succeeded(msgspec.Struct, frozen=True, gc=False):
    value: bytes


class Retrying(msgspec.Struct, frozen=True):
    delay_ms: int
    error: str


class Deferred(msgspec.Struct, frozen=True):
    delay_ms: int
    error: str


class Dead(msgspec.Struct, frozen=True):
    reason: str
    error: str
    traceback: str = ""


class Cancelled(msgspec.Struct, frozen=True):
    pass


Ending = Succeeded | Retrying | Deferred | Dead | Cancelled


def decide(outcome: Outcome, attempt: int, deferrals: int, retry: Retry, jitter: float) -> Ending:
    """What becomes of a job whose `attempt`-th run (from 1) came to this; `jitter` is random in [0, 1)."""
    match outcome:
        case Returned(value):
            return Succeeded(value)
        case Raised(error, traceback, covered):
            text = describe(error)
            if attempt < retry.limit and (retry.covers(error) if covered is None else covered):
                return Retrying(retry.delay_ms(attempt, jitter), text)
            return Dead("failed", text, traceback)
        case TimedOut(seconds, traceback):
            text = f"TimeoutError: still running after {seconds:g} s"
            if attempt < retry.limit and retry.covers(TimeoutError(text)):
                return Retrying(retry.delay_ms(attempt, jitter), text)
            return Dead("failed", text, traceback)
        case AskedLater(delay_ms, reason):
            if attempt < retry.limit:
                return Retrying(delay_ms, f"RetryLater: {reason}")
            return Dead("failed", f"RetryLater: {reason}")
        case Rejected(reason):
            return Dead("rejected", f"Reject: {reason}")
        case Unencodable(text):
            return Dead("unencodable", text)
        case Unfit(text):
            return Dead("arguments", text)
        case Overdue(late_ms):
            return Dead("expired", f"not started in time: {late_ms} ms late")
        case Undecodable(text):
            return Dead("undecodable", text)
        case Puzzling(reason, text):
            if deferrals + 1 < DEFER.limit:
                return Deferred(DEFER.delay_ms(deferrals + 1, jitter), text)
            return Dead(reason, text)
        case Stopped():
            return Cancelled()


def describe(error: BaseException) -> str:
    """`Type: message`, however odd the exception; always text that UTF-8 can carry."""
    try:
        message = str(error)
    except BaseException as broken:
        message = f"(its message cannot be shown: {type(broken).__name__})"
    name = type(error).__name__
    return storable(f"{name}: {message}" if message else name)


def storable(text: str) -> str:
    """The text without what UTF-8 cannot carry: lone surrogates are shown as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def state_of_dead(reason: str) -> State:
    """The state users see for a dead letter."""
    return "expired" if reason == "expired" else "failed"

"""decide: the whole table of outcomes and endings."""

from __future__ import annotations

import typing

import pytest

from asyncq.backoff import Retry
from asyncq.lifecycle import (
    DEFER,
    REASONS,
    STATES,
    AskedLater,
    Cancelled,
    Dead,
    Deferred,
    Ending,
    Outcome,
    Overdue,
    Puzzling,
    Raised,
    Rejected,
    Retrying,
    Returned,
    Stopped,
    Succeeded,
    TimedOut,
    Undecodable,
    Unencodable,
    Unfit,
    decide,
    describe,
    state_of_dead,
)

ERROR = ValueError("no")
RETRY = Retry(attempts=3, delays=(1, 2))
PICKY = Retry(attempts=3, delays=(1, 2), on=(KeyError,))
LATE = "TimeoutError: still running after 1.5 s"

# outcome, attempt, deferrals, retry -> ending
TABLE: list[tuple[Outcome, int, int, Retry, Ending]] = [
    (Returned(b"v"), 1, 0, RETRY, Succeeded(b"v")),
    (Returned(b"v"), 3, 0, RETRY, Succeeded(b"v")),
    (Raised(ERROR, "tb"), 1, 0, RETRY, Retrying(1000, "ValueError: no")),
    (Raised(ERROR, "tb"), 2, 0, RETRY, Retrying(2000, "ValueError: no")),
    (Raised(ERROR, "tb"), 3, 0, RETRY, Dead("failed", "ValueError: no", "tb")),
    (Raised(ERROR, "tb"), 4, 0, RETRY, Dead("failed", "ValueError: no", "tb")),
    (Raised(ERROR, "tb"), 1, 0, Retry(attempts=1), Dead("failed", "ValueError: no", "tb")),
    (Raised(ERROR, "tb"), 1, 0, PICKY, Dead("failed", "ValueError: no", "tb")),
    (Raised(KeyError("k"), "tb"), 1, 0, PICKY, Retrying(1000, "KeyError: 'k'")),
    (TimedOut(1.5, "tb"), 2, 0, RETRY, Retrying(2000, LATE)),
    (TimedOut(1.5, "tb"), 3, 0, RETRY, Dead("failed", LATE, "tb")),
    (TimedOut(1.5, "tb"), 1, 0, PICKY, Dead("failed", LATE, "tb")),
    (TimedOut(1.5, "tb"), 1, 0, Retry(give_up_on=(TimeoutError,)), Dead("failed", LATE, "tb")),
    (AskedLater(7, "busy"), 1, 0, RETRY, Retrying(7, "RetryLater: busy")),
    (AskedLater(7, "busy"), 2, 0, PICKY, Retrying(7, "RetryLater: busy")),
    (AskedLater(7, "busy"), 3, 0, RETRY, Dead("failed", "RetryLater: busy")),
    (Rejected("bad"), 1, 0, RETRY, Dead("rejected", "Reject: bad")),
    (Rejected("bad"), 3, 0, RETRY, Dead("rejected", "Reject: bad")),
    (Unencodable("a lock"), 1, 0, RETRY, Dead("unencodable", "a lock")),
    (Unfit("x is no int"), 1, 0, RETRY, Dead("arguments", "x is no int")),
    (Overdue(9), 1, 0, RETRY, Dead("expired", "not started in time: 9 ms late")),
    (Overdue(9), 2, 0, RETRY, Dead("expired", "not started in time: 9 ms late")),
    (Undecodable("junk"), 1, 0, RETRY, Dead("undecodable", "junk")),
    (Puzzling("unknown task", "no f"), 1, 0, RETRY, Deferred(DEFER.delay_ms(1, 0.0), "no f")),
    (Puzzling("unknown task", "no f"), 1, 7, RETRY, Deferred(DEFER.delay_ms(8, 0.0), "no f")),
    (Puzzling("unknown task", "no f"), 1, 8, RETRY, Dead("unknown task", "no f")),
    (Puzzling("unknown version", "v9"), 3, 0, Retry(attempts=1), Deferred(DEFER.delay_ms(1, 0.0), "v9")),
    (Puzzling("unknown version", "v9"), 1, 255, RETRY, Dead("unknown version", "v9")),
    (Stopped(), 1, 0, RETRY, Cancelled()),
    (Stopped(), 3, 0, RETRY, Cancelled()),
]


@pytest.mark.parametrize(("outcome", "attempt", "deferrals", "retry", "ending"), TABLE)
def test_decide(outcome: Outcome, attempt: int, deferrals: int, retry: Retry, ending: Ending) -> None:
    assert decide(outcome, attempt, deferrals, retry, 0.0) == ending


def test_the_table_has_every_outcome_and_every_ending() -> None:
    assert {type(row[0]) for row in TABLE} == set(typing.get_args(Outcome))
    assert {type(row[4]) for row in TABLE} == set(typing.get_args(Ending))


def test_every_reason_is_explained_and_can_come_about() -> None:
    by_decide = {row[4].reason for row in TABLE if isinstance(row[4], Dead)}
    assert by_decide | {"poison"} == set(REASONS)


def test_every_dead_letter_has_a_state_that_users_know() -> None:
    assert {state_of_dead(reason) for reason in REASONS} <= set(STATES)
    assert state_of_dead("expired") == "expired"
    assert state_of_dead("poison") == "failed"


def test_a_job_that_nobody_understands_runs_out_of_patience() -> None:
    deferrals = 0
    while isinstance(decide(Puzzling("unknown task", ""), 1, deferrals, RETRY, 0.5), Deferred):
        deferrals += 1
        assert deferrals < 100
    assert deferrals == DEFER.limit - 1


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot even say")


class Shy(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no"), "ValueError: no"),
        (ValueError(), "ValueError"),
        (KeyError("k"), "KeyError: 'k'"),
        (Shy("x"), "Shy: x"),
        (Broken(), "Broken: (its message cannot be shown: RuntimeError)"),
        (ValueError("file \udcff"), "ValueError: file \\udcff"),
    ],
)
def test_any_exception_can_be_described_in_text_that_can_be_stored(error: BaseException, text: str) -> None:
    assert describe(error) == text
    describe(error).encode()

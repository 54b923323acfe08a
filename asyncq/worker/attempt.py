"""One run of one job, read from top to bottom: open → call → outcome."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from asyncq import codec
from asyncq.clock import LONGEST_S
from asyncq.config import QueueSettings
from asyncq.errors import Reject, RetryLater, SoftTimeout
from asyncq.job import current_job, running_job
from asyncq.lifecycle import (
    AskedLater,
    Outcome,
    Overdue,
    Puzzling,
    Raised,
    Rejected,
    Returned,
    Stopped,
    TimedOut,
    Undecodable,
    Unencodable,
    Unfit,
)
from asyncq.queue import Middleware
from asyncq.task import Task
from asyncq.worker.delivery import Delivery
from asyncq.worker.process import ChildError, ProcessPool, UnencodableValue

__all__ = ["Runner", "call", "open_delivery", "stopped_or_raised"]

TRACEBACK_CHARACTERS = 16_000


class Runner:
    """A task made ready to run: what does not change from job to job is worked out once."""

    __slots__ = (
        "decode",
        "interruptible",
        "invoke",
        "max_payload",
        "name",
        "result_ttl_ms",
        "retry",
        "soft_timeout_s",
        "timeout_s",
    )

    def __init__(
        self,
        task: Task[..., Any],
        settings: QueueSettings,
        middlewares: list[Middleware],
        threads: anyio.CapacityLimiter,
        processes: ProcessPool,
    ) -> None:
        self.name = task.name
        self.decode = task.arguments.decode
        self.retry = task.defaults.retry
        self.timeout_s = task.defaults.timeout or math.inf
        self.soft_timeout_s = task.defaults.soft_timeout or math.inf
        ttl = settings.result_ttl if task.defaults.result_ttl is None else task.defaults.result_ttl
        self.result_ttl_ms = round(ttl * 1000)
        self.max_payload = settings.max_payload
        self.interruptible = task.is_async or task.defaults.process
        self.invoke: Callable[..., Awaitable[Any]] = _invoker(task, threads, processes)
        for middleware in reversed(middlewares):
            self.invoke = functools.partial(_through, middleware, self.invoke)


def _invoker(
    task: Task[..., Any], threads: anyio.CapacityLimiter, processes: ProcessPool
) -> Callable[..., Awaitable[Any]]:
    """How this kind of function is called: as a coroutine, in a thread, in a process."""
    if task.is_async:
        return task.function
    if task.defaults.process:
        return functools.partial(processes.run, task)

    async def in_thread(*args: Any, **kwargs: Any) -> Any:
        # A thread cannot be stopped. Abandoned, it runs to its end; the job's outcome does not wait for it.
        value = await anyio.to_thread.run_sync(
            functools.partial(task.function, *args, **kwargs), abandon_on_cancel=True, limiter=threads
        )
        if inspect.iscoroutine(value):
            value.close()
            raise UnencodableValue(
                f"{task.name} returned a coroutine that nobody awaited. Make it an `async def`; "
                "if it is one, a decorator between it and @queue.task() is not"
            )
        return value

    return in_thread


async def _through(middleware: Middleware, inner: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    return await middleware(current_job(), functools.partial(inner, *args, **kwargs))


def open_delivery(delivery: Delivery, runners: Mapping[str, Runner], now_s: float) -> Outcome | None:
    """Make a delivery ready to run, or say why it cannot. Reads nothing but its bytes; raises nothing."""
    version, delivery.attempt, delivery.deferrals = codec.frame_head(delivery.job)
    if not (delivery.crashes.isdigit() and delivery.id.isascii()):
        return Undecodable("an entry that asyncq did not write")
    if version != codec.VERSION:
        if not version or not delivery.id:
            return Undecodable(f"these {len(delivery.job)} bytes are not a job")
        return Puzzling("unknown version", f"the job has version {version}; this worker reads {codec.VERSION}")
    try:
        delivery.body = body = codec.decode_body(delivery.job)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Undecodable(f"the job's body cannot be read: {error}")
    if body.expires_ms and body.expires_ms < delivery.claimed_ms:
        return Overdue(delivery.claimed_ms - body.expires_ms)
    runner = runners.get(body.task)
    if runner is None:
        return Puzzling("unknown task", f"this worker knows no task {body.task!r}")
    try:
        delivery.args, delivery.kwargs = runner.decode(body.args)
    except Exception as error:  # Decoding runs users' code too: the __post_init__ of their dataclasses.
        return Unfit(f"the arguments do not fit {body.task}: {error}")
    delivery.runner = runner
    delivery.result_ttl_ms, delivery.timeout_s = runner.result_ttl_ms, runner.timeout_s
    delivery.soft_timeout_s = runner.soft_timeout_s
    if (changed := body.overrides) is not None:
        if changed.timeout is not None:
            delivery.timeout_s = changed.timeout
        if changed.soft_timeout is not None:
            delivery.soft_timeout_s = changed.soft_timeout
        if changed.result_ttl is not None:
            # What the server would refuse as a TTL must not come as far as `finish`.
            delivery.result_ttl_ms = round(min(max(0.0, changed.result_ttl), LONGEST_S) * 1000)
    delivery.deadline_s = now_s + delivery.timeout_s
    delivery.soft_deadline_s = now_s + delivery.soft_timeout_s
    return None


async def call(delivery: Delivery) -> Outcome | None:
    """Run the task's code and say what it came to; None when the job is no longer ours to end.

    The one place where users' code is called. Whatever it raises becomes an outcome, and a value that it
    returns counts even if it was asked to stop.
    """
    runner: Runner = delivery.runner  # type: ignore[assignment]
    running_job.set(delivery)
    try:
        if delivery.soft_timeout_s == math.inf or not runner.interruptible:
            value = await runner.invoke(*delivery.args, **delivery.kwargs)
        else:
            value = await Interruptible(delivery, runner.invoke(*delivery.args, **delivery.kwargs))
    except RetryLater as later:
        return AskedLater(max(0, round(later.delay * 1000)), str(later.reason))
    except Reject as rejected:
        return Rejected(str(rejected.reason))
    except UnencodableValue as error:
        return Unencodable(str(error))
    except BaseException as error:
        return stopped_or_raised(delivery, error)
    if delivery.result_ttl_ms == 0:
        return Returned(codec.NIL)
    try:
        encoded = codec.encode(value)
    except Exception as error:  # Encoding runs users' code too.
        return Unencodable(f"{runner.name} returned {type(value).__name__}, which cannot be stored: {error}")
    if len(encoded) > runner.max_payload:
        return Unencodable(
            f"{runner.name} returned {len(encoded)} bytes, max_payload is {runner.max_payload}. "
            "Store large results elsewhere and return a reference"
        )
    return Returned(encoded)


def stopped_or_raised(delivery: Delivery, error: BaseException) -> Outcome | None:
    """What an exception that ended the code means: ours, when we stopped it, or its own."""
    match delivery.stop:
        case "lost" | "handback":
            return None
        case "cancelled":
            return Stopped()
        case "timeout":
            return TimedOut(delivery.timeout_s, _traceback(error))
    return Raised(error, _traceback(error), error.covered if isinstance(error, ChildError) else None)


def _traceback(error: BaseException) -> str:
    """The traceback from the user's code on, shortened in the middle if it is very long."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
    except BaseException:  # an exception whose own __str__ or __cause__ is broken
        text = f"{type(error).__name__} (its traceback cannot be shown)"
    if len(text) > TRACEBACK_CHARACTERS:
        half = TRACEBACK_CHARACTERS // 2
        text = f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
    return text


class Interruptible(Awaitable[Any]):
    """Awaits a coroutine so that a cancellation can reach it as `SoftTimeout` instead.

    asyncio can throw only CancelledError into a task. It throws it into the outermost coroutine, from where it
    is handed down through each `await`; this one exchanges it on the way.
    """

    __slots__ = ("_delivery", "_inner")

    def __init__(self, delivery: Delivery, inner: Awaitable[Any]) -> None:
        self._delivery = delivery
        self._inner: Generator[Any, Any, Any] | Coroutine[Any, Any, Any] = (
            inner if isinstance(inner, Coroutine) else inner.__await__()
        )

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # type: ignore[return-value]

    def __iter__(self) -> Interruptible:
        return self

    def __next__(self) -> Any:
        return self._inner.send(None)

    def send(self, value: Any) -> Any:
        return self._inner.send(value)

    def throw(self, error: BaseException) -> Any:
        delivery = self._delivery
        if isinstance(error, asyncio.CancelledError) and delivery.stop == "soft timeout":
            delivery.stop = ""
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            error = SoftTimeout(f"still running after {delivery.soft_timeout_s:g} s")
        return self._inner.throw(error)

    def close(self) -> None:
        self._inner.close()

"""One attempt: what the code does, and what becomes of its job."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import decimal
import enum
import math
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from asyncq import (
    Job,
    JobFailed,
    JobNotFound,
    Queue,
    Reject,
    Retry,
    RetryLater,
    RunningJob,
    SoftTimeout,
    current_job,
)
from tests.eventually import eventually
from tests.servers import TestServer
from tests.worker.recording import AT_ONCE, NOTHING, PROMPTLY, letters, queue_of, size


@dataclasses.dataclass
class Point:
    x: int
    when: datetime


class Colour(enum.Enum):
    RED = "red"


class Pair(msgspec.Struct):
    left: uuid.UUID
    right: decimal.Decimal


POINT = Point(3, datetime(2026, 1, 2, tzinfo=UTC))
PAIR = Pair(uuid.UUID(int=7), decimal.Decimal("1.50"))


@pytest.fixture
def queue(server: TestServer, name: str) -> Queue:
    return queue_of(server, name)


# -- values -----------------------------------------------------------------------------------------------


async def test_values_come_back_in_the_type_of_the_annotation(queue: Queue) -> None:
    @queue.task()
    async def point(p: Point) -> Point:
        assert isinstance(p, Point)
        return p

    @queue.task()
    async def pair(p: Pair) -> Pair:
        return p

    @queue.task()
    async def colour() -> Colour:
        return Colour.RED

    @queue.task()
    async def wait() -> timedelta:
        return timedelta(seconds=90)

    @queue.task()
    async def nothing() -> None:
        pass

    @queue.task()
    async def plain():  # type: ignore[no-untyped-def]
        return {"a": [1, 2.5, "x", b"\xff", None, True]}

    @queue.task()
    async def pairs() -> dict[str, tuple[int, ...]]:
        return {"a": (1, 2)}

    async with queue, queue.worker(concurrency=10):
        assert await (await point.enqueue(POINT)).result(PROMPTLY) == POINT
        assert await (await pair.enqueue(PAIR)).result(PROMPTLY) == PAIR
        assert await (await colour.enqueue()).result(PROMPTLY) is Colour.RED
        assert await (await wait.enqueue()).result(PROMPTLY) == timedelta(seconds=90)
        done = await nothing.enqueue()
        assert await Job[object](queue, done.id, nothing.decode_value).result(PROMPTLY) is None
        assert await (await plain.enqueue()).result(PROMPTLY) == {"a": [1, 2.5, "x", b"\xff", None, True]}
        assert await (await pairs.enqueue()).result(PROMPTLY) == {"a": (1, 2)}


async def test_result_ttl_0_keeps_nothing_but_the_job_has_run(queue: Queue, redis: Redis) -> None:
    ran = asyncio.Event()

    @queue.task(result_ttl=0)
    async def task() -> int:
        ran.set()
        return 7

    async with queue, queue.worker(concurrency=1) as worker:
        job = await task.enqueue()
        with pytest.raises(JobNotFound, match="no result is kept"):
            await job.result(PROMPTLY)
        assert ran.is_set()
        await eventually(lambda: worker.info().succeeded == 1)
        assert await size(redis, queue.name) == NOTHING
        assert not [key async for key in redis.scan_iter(f"aq:{{{queue.name}}}:result:*")]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (object(), "returned object, which cannot be stored"),
        (1j, "returned complex"),
        (2**80, "returned int"),
        ("\ud800", "returned str"),
        (b"x" * 2_000, "returned 2003 bytes, max_payload is 1000"),
    ],
    ids=["object", "complex", "int", "surrogate", "oversize"],
)
async def test_a_result_that_cannot_be_stored_is_dead_lettered_without_another_run(
    server: TestServer, name: str, redis: Redis, value: Any, says: str
) -> None:
    queue = queue_of(server, name, max_payload=1_000)
    runs = []

    @queue.task(retry=AT_ONCE)
    async def task() -> Any:
        runs.append(1)
        return value

    async with queue, queue.worker(concurrency=1):
        with pytest.raises(JobFailed, match=says):
            await (await task.enqueue()).result(PROMPTLY)
    assert runs == [1]
    assert [letter["reason"] for letter in await letters(redis, name)] == ["unencodable"]


async def test_a_result_whose_own_code_breaks_while_it_is_stored_is_dead_lettered(queue: Queue, redis: Redis) -> None:
    class Broken(msgspec.Struct, tag_field="kind", tag="broken"):
        x: Any

    class Odd(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            raise RuntimeError("no items today")

    @queue.task()
    async def deep() -> Any:
        value: list[Any] = []
        for _ in range(100_000):
            value = [value]
        return value

    async with queue, queue.worker(concurrency=1):
        with pytest.raises(JobFailed, match="cannot be stored"):
            await (await deep.enqueue()).result(PROMPTLY)
    assert [letter["reason"] for letter in await letters(redis, queue.name)] == ["unencodable"]


# -- failures ---------------------------------------------------------------------------------------------


async def test_a_failure_is_retried_and_then_dead_lettered_with_its_traceback(queue: Queue, redis: Redis) -> None:
    runs: list[tuple[int, int]] = []

    @queue.task(retry=AT_ONCE)
    async def task(n: int) -> None:
        runs.append((current_job().attempt, current_job().crashes))
        raise ValueError(f"no {n}")

    async with queue, queue.worker(concurrency=5):
        job = await task.enqueue(7)
        with pytest.raises(JobFailed, match="ValueError: no 7") as caught:
            await job.result(PROMPTLY)
        info = await job.info()
    assert runs == [(1, 0), (2, 0), (3, 0)]
    assert caught.value.attempts == 3
    assert "raise ValueError(f" in caught.value.traceback
    assert "test_attempts.py" in str(caught.value)
    assert (info.state, info.reason, info.attempt) == ("failed", "failed", 3)
    assert await size(redis, queue.name) == {**NOTHING, "dead": 1, "index": 1}


async def test_retries_wait_as_long_as_retry_says(queue: Queue) -> None:
    began: list[float] = []

    @queue.task(retry=Retry(delays=(0.2, 0.4)))
    async def task() -> str:
        began.append(time.monotonic())
        if current_job().attempt < 3:
            raise ConnectionError
        return "at last"

    async with queue, queue.worker(concurrency=1):
        job = await task.enqueue()
        await eventually(lambda: began)
        info = await eventually(lambda: _state(job, "retrying"))
        assert info.attempt >= 2
        assert await job.result(PROMPTLY) == "at last"
    first, second = began[1] - began[0], began[2] - began[1]
    assert 0.19 <= first < PROMPTLY
    assert 0.39 <= second < PROMPTLY


async def _state(job: Any, *states: str) -> Any:
    info = await job.info()
    return info if info.state in states else None


async def test_only_errors_that_retry_covers_are_tried_again(queue: Queue) -> None:
    runs: list[str] = []

    @queue.task(retry=Retry(attempts=3, backoff="constant", base=0, on=(OSError,), give_up_on=(FileNotFoundError,)))
    async def task(kind: str) -> None:
        runs.append(kind)
        raise {"os": OSError("x"), "missing": FileNotFoundError("x"), "value": ValueError("x")}[kind]

    async with queue, queue.worker(concurrency=5):
        for kind in ("os", "missing", "value"):
            with pytest.raises(JobFailed):
                await (await task.enqueue(kind)).result(PROMPTLY)
    assert runs == ["os", "os", "os", "missing", "value"]


async def test_retry_later_comes_back_after_its_delay_and_counts(queue: Queue, redis: Redis) -> None:
    runs: list[int] = []

    @queue.task(retry=2)
    async def task() -> None:
        runs.append(current_job().attempt)
        raise RetryLater(0.05, "the door is shut")

    async with queue, queue.worker(concurrency=1):
        with pytest.raises(JobFailed, match="RetryLater: the door is shut"):
            await (await task.enqueue()).result(PROMPTLY)
    assert runs == [1, 2]
    assert (await letters(redis, queue.name))[0]["reason"] == "failed"


@pytest.mark.parametrize("delay", [math.nan, math.inf, 1e300, None, timedelta(1), "soon"])
async def test_retry_later_with_an_impossible_delay_is_a_failure_like_any_other(
    queue: Queue, redis: Redis, delay: Any
) -> None:
    @queue.task(retry=2)
    async def task() -> str:
        if current_job().attempt == 1:
            raise RetryLater(delay)
        return "second"

    @queue.task()
    async def other() -> str:
        return "fine"

    async with queue, queue.worker(concurrency=1) as worker:
        await task.enqueue()
        assert await (await other.enqueue()).result(PROMPTLY) == "fine"
        await eventually(lambda: worker.info().retried == 1)
        assert worker.running == 0


async def test_reject_is_dead_lettered_at_once(queue: Queue, redis: Redis) -> None:
    runs: list[int] = []

    @queue.task(retry=5)
    async def task() -> None:
        runs.append(1)
        raise Reject("spam")

    async with queue, queue.worker(concurrency=1):
        with pytest.raises(JobFailed, match="Reject: spam"):
            await (await task.enqueue()).result(PROMPTLY)
    assert runs == [1]
    assert (await letters(redis, queue.name))[0]["reason"] == "rejected"


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("I do not talk")


class Deaf(Exception):
    def __str__(self) -> str:
        raise SystemExit("nor do I")


class NoDelay(RetryLater):
    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("threaded", [False, True], ids=["async", "thread"])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError("of its own"), "CancelledError: of its own"),
        (GeneratorExit(), "GeneratorExit"),
        (StopIteration("x"), "RuntimeError: .*raised StopIteration"),
        (StopAsyncIteration(), "StopAsyncIteration"),
        (BaseException("base"), "BaseException: base"),
        (BaseExceptionGroup("many", [ValueError("a"), KeyboardInterrupt()]), "BaseExceptionGroup: many"),
        (Mute(), "Mute: .its message cannot be shown: RuntimeError"),
        (Deaf(), "Deaf: .its message cannot be shown: SystemExit"),
        (NoDelay(), "."),
        (ValueError("half a character: \ud800"), r"ValueError: half a character: \\ud800"),
        (ValueError("x" * 1_000_000), "ValueError: xxx"),
        (Exception("zero \0 and \r\n"), "Exception: zero"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_whatever_a_task_raises_is_a_failure_and_the_worker_goes_on(
    queue: Queue, redis: Redis, error: BaseException, says: str, threaded: bool
) -> None:
    @queue.task(retry=1)
    async def fails() -> None:
        raise error

    @queue.task(retry=1)
    def fails_in_a_thread() -> None:
        raise error

    @queue.task()
    async def works() -> int:
        return 1

    task: Any = fails_in_a_thread if threaded else fails
    async with queue, queue.worker(concurrency=1) as worker:
        with pytest.raises(JobFailed, match=says):
            await (await task.enqueue()).result(PROMPTLY)
        assert await (await works.enqueue()).result(PROMPTLY) == 1
        assert worker.phase == "running"
    letter = (await letters(redis, queue.name))[0]
    assert letter["reason"] == "failed"
    assert len(letter["error"]) <= 10_000
    assert len(letter["traceback"]) <= 20_000


async def test_a_huge_traceback_is_shortened_in_the_middle(queue: Queue, redis: Redis) -> None:
    @queue.task(retry=1)
    async def task() -> None:
        error: Exception = ValueError("the first")
        for number in range(2_000):
            nested = KeyError(f"number {number}")
            nested.__cause__ = error
            error = nested
        raise error

    async with queue, queue.worker(concurrency=1):
        with pytest.raises(JobFailed) as caught:
            await (await task.enqueue()).result(PROMPTLY * 2)
    assert "characters left out" in caught.value.traceback
    assert caught.value.traceback.startswith("ValueError: the first")
    assert "number 1999" in caught.value.traceback


# -- current_job ------------------------------------------------------------------------------------------


async def test_current_job_says_what_runs(queue: Queue) -> None:
    seen: list[RunningJob] = []

    @queue.task()
    async def task() -> None:
        seen.append(current_job())

    with pytest.raises(RuntimeError, match="runs in a job"):
        current_job()
    async with queue, queue.worker(concurrency=1):
        before = time.time() * 1000
        job = await task.options(tags=("red", "blue")).enqueue()
        await job.result(PROMPTLY)
    running = seen[0]
    assert (running.id, running.task, running.queue, running.lane) == (job.id, "task", queue.name, "default")
    assert (running.attempt, running.crashes, running.tags) == (1, 0, ("red", "blue"))
    assert abs(running.enqueued_ms - before) < 60_000
    assert not running.cancelled
    assert not running.timed_out


@pytest.mark.parametrize("threaded", [False, True], ids=["async", "thread"])
async def test_progress_is_seen_from_outside_and_gone_with_the_job(queue: Queue, redis: Redis, threaded: bool) -> None:
    go_on, go_on_thread = asyncio.Event(), threading.Event()

    @queue.task()
    async def reports() -> None:
        current_job().progress(10)
        current_job().progress(42.5, step="b", done=[1, 2])
        await go_on.wait()

    @queue.task()
    def reports_in_a_thread() -> None:
        current_job().progress(42.5, step="b", done=[1, 2])
        go_on_thread.wait(PROMPTLY)

    task: Any = reports_in_a_thread if threaded else reports
    async with queue, queue.worker(concurrency=1) as worker:
        job = await task.enqueue()

        async def progress() -> Any:
            info = await job.info()
            return info if info.progress is not None else None

        try:
            info = await eventually(progress)
        finally:
            go_on.set()
            go_on_thread.set()
        assert (info.state, info.progress, info.meta) == ("running", 42.5, {"step": "b", "done": [1, 2]})
        assert info.worker == worker.consumer
        await job.result(PROMPTLY)
        assert (await job.info()).progress is None
    assert not await redis.exists(f"aq:{{{queue.name}}}:progress")


async def test_progress_that_makes_no_sense_is_the_tasks_own_error(queue: Queue) -> None:
    @queue.task(retry=1)
    async def task(percent: float) -> None:
        current_job().progress(percent)

    @queue.task()
    async def odd() -> int:
        current_job().progress(1, thing=object())
        return 1

    async with queue, queue.worker(concurrency=1):
        with pytest.raises(JobFailed, match="progress is from 0 to 100, not 101"):
            await (await task.enqueue(101)).result(PROMPTLY)
        assert await (await odd.enqueue()).result(PROMPTLY) == 1


# -- timeouts ---------------------------------------------------------------------------------------------


async def test_an_async_task_is_stopped_at_its_timeout_and_retried(queue: Queue) -> None:
    runs: list[str] = []

    @queue.task(timeout=0.1, retry=Retry(attempts=2, backoff="constant", base=0))
    async def task() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            runs.append("stopped")
            raise

    async with queue, queue.worker(concurrency=1):
        with pytest.raises(JobFailed, match=r"TimeoutError: still running after 0\.1 s") as caught:
            await (await task.enqueue()).result(PROMPTLY)
    assert runs == ["stopped", "stopped"]
    assert "asyncio.sleep(60)" in caught.value.traceback


async def test_one_call_may_have_another_timeout(queue: Queue) -> None:
    @queue.task(retry=1)
    async def task() -> None:
        await asyncio.sleep(60)

    async with queue, queue.worker(concurrency=1):
        with pytest.raises(JobFailed, match=r"after 0\.05 s"):
            await (await task.options(timeout=0.05).enqueue()).result(PROMPTLY)


async def test_a_thread_that_passes_its_timeout_is_left_behind(queue: Queue) -> None:
    let_go, ended = threading.Event(), threading.Event()

    @queue.task(timeout=0.1, retry=1)
    def task() -> None:
        let_go.wait(PROMPTLY)
        ended.set()

    @queue.task()
    def other() -> int:
        return 5

    async with queue, queue.worker(concurrency=1):
        try:
            with pytest.raises(JobFailed, match="TimeoutError"):
                await (await task.enqueue()).result(PROMPTLY)
            assert not ended.is_set()
            assert await (await other.enqueue()).result(PROMPTLY) == 5
        finally:
            let_go.set()
        await eventually(ended.is_set)


async def test_a_soft_timeout_is_raised_inside_the_code_which_may_still_return(queue: Queue) -> None:
    @queue.task(soft_timeout=0.1, timeout=60)
    async def cleans_up() -> str:
        try:
            await asyncio.sleep(60)
        except SoftTimeout as timeout:
            await asyncio.sleep(0.01)
            return f"cleaned up: {timeout}, {current_job().timed_out}"
        return "not reached"

    @queue.task(soft_timeout=0.1, timeout=60, retry=1)
    async def does_not() -> None:
        async with asyncio.timeout(30):
            await asyncio.sleep(60)

    async with queue, queue.worker(concurrency=2):
        value = await (await cleans_up.enqueue()).result(PROMPTLY)
        assert value == "cleaned up: still running after 0.1 s, True"
        with pytest.raises(JobFailed, match=r"SoftTimeout: still running after 0\.1 s"):
            await (await does_not.enqueue()).result(PROMPTLY)


async def test_after_a_soft_timeout_the_hard_one_still_stops_it(queue: Queue) -> None:
    heard: list[str] = []

    @queue.task(soft_timeout=0.05, timeout=0.2, retry=1)
    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except SoftTimeout:
            heard.append("soft")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                heard.append("hard")
                raise

    async with queue, queue.worker(concurrency=1):
        with pytest.raises(JobFailed, match=r"still running after 0\.2 s"):
            await (await stubborn.enqueue()).result(PROMPTLY)
    assert heard == ["soft", "hard"]


async def test_a_thread_sees_its_soft_timeout_as_a_flag(queue: Queue) -> None:
    @queue.task(soft_timeout=0.05)
    def task() -> str:
        job = current_job()
        deadline = time.monotonic() + PROMPTLY
        while not job.timed_out and time.monotonic() < deadline:
            time.sleep(0.01)
        return f"timed out: {job.timed_out}"

    async with queue, queue.worker(concurrency=1):
        assert await (await task.enqueue()).result(PROMPTLY) == "timed out: True"


async def test_code_that_swallows_its_cancellation_keeps_what_it_returns(queue: Queue) -> None:
    @queue.task(timeout=0.05, retry=1)
    async def swallows() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
        return "done all the same"

    @queue.task(timeout=0.05, retry=1)
    async def exchanges() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("something else") from None
        return ""

    async with queue, queue.worker(concurrency=2):
        assert await (await swallows.enqueue()).result(PROMPTLY) == "done all the same"
        with pytest.raises(JobFailed, match="TimeoutError") as caught:
            await (await exchanges.enqueue()).result(PROMPTLY)
        assert "ValueError: something else" in caught.value.traceback


# -- threads ----------------------------------------------------------------------------------------------

flavour: contextvars.ContextVar[str] = contextvars.ContextVar("flavour", default="plain")


async def test_def_tasks_run_in_threads_with_the_context_of_their_job(queue: Queue) -> None:
    together = threading.Barrier(3)

    @queue.middleware
    async def season(job: RunningJob, run: Callable[[], Awaitable[Any]]) -> Any:
        flavour.set(job.id)
        return await run()

    @queue.task()
    def task() -> tuple[str, str, str]:
        together.wait(PROMPTLY)  # three at once, or it breaks
        return threading.current_thread().name, current_job().id, flavour.get()

    async with queue, queue.worker(concurrency=3):
        jobs = [await task.enqueue() for _ in range(3)]
        results = [await job.result(PROMPTLY) for job in jobs]
    assert threading.main_thread().name not in {thread for thread, _, _ in results}
    assert [(own, seen) for _, own, seen in results] == [(job.id, job.id) for job in jobs]


# -- middleware and lifespan --------------------------------------------------------------------------------


async def test_middlewares_wrap_each_attempt_the_first_outermost(queue: Queue) -> None:
    order: list[str] = []

    @queue.middleware
    async def outer(job: RunningJob, run: Callable[[], Awaitable[Any]]) -> Any:
        order.append(f"outer {job.task} {job.attempt}")
        try:
            return await run()
        finally:
            order.append("outer end")

    @queue.middleware
    async def inner(job: RunningJob, run: Callable[[], Awaitable[Any]]) -> Any:
        order.append("inner")
        return await run() + 1

    @queue.task()
    async def task(n: int) -> int:
        order.append("task")
        return n

    async with queue, queue.worker(concurrency=1):
        assert await (await task.enqueue(4)).result(PROMPTLY) == 5
    assert order == ["outer task 1", "inner", "task", "outer end"]


async def test_a_middleware_may_answer_itself_or_fail(queue: Queue) -> None:
    runs: list[str] = []

    @queue.middleware
    async def gate(job: RunningJob, run: Callable[[], Awaitable[Any]]) -> Any:
        match job.tags:
            case ("skip",):
                return "skipped"
            case ("break",):
                raise ValueError("the gate is stuck")
            case ("reject",):
                raise Reject("not on the list")
        return await run()

    @queue.middleware
    def not_async(job: RunningJob, run: Callable[[], Awaitable[Any]]) -> Any:
        if job.tags == ("odd",):
            return 3
        return run()

    @queue.task(retry=1)
    async def task() -> str:
        runs.append("ran")
        return "ran"

    async with queue, queue.worker(concurrency=1):
        assert await (await task.options(tags=("skip",)).enqueue()).result(PROMPTLY) == "skipped"
        for tag, says in (("break", "the gate is stuck"), ("reject", "not on the list"), ("odd", "TypeError")):
            with pytest.raises(JobFailed, match=says):
                await (await task.options(tags=(tag,)).enqueue()).result(PROMPTLY)
        assert runs == []
        assert await (await task.enqueue()).result(PROMPTLY) == "ran"


async def test_lifespan_surrounds_the_worker(server: TestServer, name: str) -> None:
    order: list[str] = []

    @asynccontextmanager
    async def lifespan(queue: Queue) -> AsyncIterator[None]:
        order.append(f"start {queue.name == name}")
        yield
        order.append("end")

    queue = queue_of(server, name, lifespan=lifespan)

    @queue.task()
    async def task() -> None:
        order.append("job")

    async with queue:
        await task.enqueue()
        async with queue.worker(burst=True, concurrency=1) as worker:
            assert worker._main is not None
            await asyncio.wait_for(asyncio.shield(worker._main), PROMPTLY)
    assert order == ["start True", "job", "end"]


async def test_a_lifespan_that_fails_to_start_stops_the_worker_before_it_takes_a_job(
    server: TestServer, name: str, redis: Redis
) -> None:
    @asynccontextmanager
    async def lifespan(queue: Queue) -> AsyncIterator[None]:
        if queue.name == name:
            raise OSError("no database")
        yield

    queue = queue_of(server, name, lifespan=lifespan)

    @queue.task()
    async def task() -> None: ...

    async with queue:
        job = await task.enqueue()
        with pytest.raises(OSError, match="no database"):
            async with queue.worker(concurrency=1):
                pytest.fail("it started")
        assert (await job.info()).state == "queued"
        assert (await size(redis, name))["lanes"] == 1

"""Leases: what is running stays ours, what is lost comes back, and never both."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from asyncq import JobFailed, Queue, current_job
from asyncq.clock import now_ms
from tests.eventually import eventually
from tests.servers import TestServer
from tests.worker.crashing import LANES, own, runs
from tests.worker.recording import AT_ONCE, NOTHING, PROMPTLY, letters, queue_of, size, worker_process

LEASE_S = 0.5


@pytest.fixture
def queue(server: TestServer, name: str) -> Queue:
    return queue_of(server, name, lanes=LANES, visibility_timeout=LEASE_S)


async def test_a_job_longer_than_its_lease_runs_once(server: TestServer, queue: Queue) -> None:
    began: list[int] = []

    @queue.task()
    async def long() -> str:
        began.append(current_job().crashes)
        await asyncio.sleep(3.5 * LEASE_S)
        return "done"

    @queue.task()
    def long_in_a_thread() -> str:
        began.append(current_job().crashes)
        time.sleep(3.5 * LEASE_S)
        return "done"

    async with queue, queue.worker(concurrency=2), queue.worker(concurrency=2):
        jobs = [await long.enqueue(), await long_in_a_thread.enqueue()]
        assert [await job.result(PROMPTLY) for job in jobs] == ["done", "done"]
    assert began == [0, 0]


async def test_a_blocked_event_loop_keeps_its_jobs_and_is_reported(
    server: TestServer, queue: Queue, name: str, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    began: list[int] = []

    @queue.task()
    async def innocent() -> str:
        began.append(1)
        await asyncio.sleep(2 * LEASE_S)
        return "done"

    @queue.task()
    async def culprit() -> None:
        time.sleep(3 * LEASE_S)  # noqa: ASYNC251

    # Another worker, whose loop turns, would take back whatever is lost.
    with (
        worker_process("crashing", server.url, name, str(LEASE_S), "other"),
        caplog.at_level(logging.ERROR, "asyncq.worker"),
    ):
        async with queue, queue.worker(concurrency=2, blocked_after=0.2) as worker:

            async def both_are_there() -> bool:
                return bool(await redis.hlen(f"aq:{{{name}}}:workers") == 2)

            await eventually(both_are_there, 30)
            other = await innocent.enqueue()
            await eventually(lambda: began)
            blocking = await culprit.enqueue()
            assert await other.result(PROMPTLY) == "done"
            await blocking.result(PROMPTLY)
            assert worker._finisher.stale == 0
    assert began == [1]
    report = next(r.getMessage() for r in caplog.records if "event loop has been blocked" in r.getMessage())
    assert f"job {blocking.id} of culprit" in report
    assert "time.sleep(3 * LEASE_S)" in report


async def test_a_lost_lease_stops_the_code_here_and_its_outcome_does_not_count(queue: Queue, redis: Redis) -> None:
    stopped, begun = asyncio.Event(), asyncio.Event()
    attempts: list[tuple[int, int]] = []

    @queue.task(retry=AT_ONCE)
    async def task() -> str:
        job = current_job()
        attempts.append((job.attempt, job.crashes))
        if job.crashes:
            return "second"
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped.set()
            raise
        return "first"

    async with queue, queue.worker(concurrency=5) as worker:
        job = await task.enqueue()
        await begun.wait()
        await queue.stores[0].reclaim(0, "thief", 0, b"0-0", 99, now_ms())
        await asyncio.wait_for(stopped.wait(), PROMPTLY)
        assert await job.result(PROMPTLY) == "second"
        await eventually(lambda: worker.running == 0)
        assert worker.info().succeeded == 1
        assert worker.info().retried == worker.info().dead == 0
    assert attempts == [(1, 0), (1, 1)]
    assert await size(redis, queue.name) == NOTHING


async def test_an_outcome_after_the_lease_was_lost_is_stale(queue: Queue, redis: Redis) -> None:
    begun = asyncio.Event()
    go_on = asyncio.Event()
    numbers = itertools.count(1)

    @queue.task(retry=AT_ONCE)
    async def task() -> int:
        number = next(numbers)
        if number == 1:
            begun.set()
            while not go_on.is_set():
                try:
                    await go_on.wait()
                except asyncio.CancelledError:
                    continue  # it does not want to hear
        return number

    async with queue, queue.worker(concurrency=5) as worker:
        job = await task.enqueue()
        await begun.wait()
        await queue.stores[0].reclaim(0, "thief", 0, b"0-0", 99, now_ms())
        go_on.set()
        assert await job.result(PROMPTLY) == 2
        await eventually(lambda: worker.running == 0)
        assert worker.info().succeeded == 1
    assert await size(redis, queue.name) == NOTHING


async def test_a_killed_workers_jobs_run_elsewhere_and_only_a_crash_is_counted(
    server: TestServer, queue: Queue, name: str, redis: Redis, tmp_path: Path
) -> None:
    own(queue, "hold")
    hold = queue.tasks["hold"]
    async with queue:
        jobs = [await hold.enqueue(str(tmp_path), "go") for _ in range(3)]
        with worker_process("crashing", server.url, name, str(LEASE_S)) as process:
            await eventually(lambda: len(runs(tmp_path)) == 3, 20)
            process.send_signal(signal.SIGKILL)
            process.wait()
        (tmp_path / "go").touch()
        for job in jobs:
            assert (await job.info()).state == "running", "until its lease has run out"
        async with queue.worker(concurrency=5):
            for job in jobs:
                assert await job.result(PROMPTLY) == "held"
                info = await job.info()
                assert info.attempt == 1
    assert sorted(runs(tmp_path)) == ["begun"] * 6 + ["ended"] * 3
    assert await size(redis, name) == NOTHING


async def test_the_crash_is_counted_where_the_job_can_see_it(server: TestServer, queue: Queue) -> None:
    seen: list[tuple[int, int]] = []

    @queue.task(retry=1)
    async def task() -> None:
        seen.append((current_job().attempt, current_job().crashes))

    async with queue:
        job = await task.enqueue()
        store = queue.stores[0]
        await store.make_groups()
        await store.claim("dead-worker", 1, [0], [0])
        async with queue.worker(concurrency=1):
            await job.result(PROMPTLY)
    assert seen == [(1, 1)]


async def test_a_job_that_kills_its_workers_is_buried_as_poison(
    server: TestServer, queue: Queue, name: str, redis: Redis, tmp_path: Path
) -> None:
    own(queue, "die", "hold")
    async with queue:
        job = await queue.tasks["die"].enqueue(str(tmp_path))
        for count in range(1, 4):
            with worker_process("crashing", server.url, name, "0.3") as process:
                await eventually(lambda: process.poll() is not None, 30)
                assert process.returncode == 17
            assert runs(tmp_path) == ["begun"] * count
        # Nobody runs it again, whoever comes.
        (tmp_path / "go").touch()
        async with queue.worker(concurrency=2):
            with pytest.raises(JobFailed, match="crashed or was lost 3 times"):
                await job.result(PROMPTLY)
            assert await (await queue.tasks["hold"].enqueue(str(tmp_path), "go")).result(PROMPTLY) == "held"
        info = await job.info()
        assert (info.reason, info.crashes, info.attempt) == ("poison", 3, 1)
    letter = (await letters(redis, name))[0]
    assert (letter["reason"], letter["crashes"]) == ("poison", "3")
    assert runs(tmp_path) == ["begun"] * 3 + ["begun", "ended"]

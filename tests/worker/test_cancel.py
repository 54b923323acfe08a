"""Cancelling jobs, wherever they are."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from asyncq import JobCancelled, JobNotFound, Queue, Retry, Worker, current_job
from asyncq.worker.delivery import Delivery, StopReason
from asyncq.worker.sources import Source
from tests.conftest import Launch, connect
from tests.eventually import eventually
from tests.servers import TestServer
from tests.worker.recording import AT_ONCE, NOTHING, PROMPTLY, queue_of, raw, size


@pytest.fixture
def queue(server: TestServer, name: str) -> Queue:
    return queue_of(server, name)


async def test_a_queued_and_a_scheduled_job_never_run(queue: Queue, redis: Redis) -> None:
    runs: list[int] = []

    @queue.task()
    async def task(number: int) -> None:
        runs.append(number)

    async with queue:
        queued, scheduled = await task.enqueue(1), await task.options(delay=0.01).enqueue(2)
        assert await queued.cancel()
        assert await scheduled.cancel()
        async with queue.worker(concurrency=1):
            await (await task.enqueue(3)).result(PROMPTLY)
            await (await task.options(delay=0.05).enqueue(4)).result(PROMPTLY)
        for job in (queued, scheduled):
            assert (await job.info()).state == "cancelled"
            with pytest.raises(JobCancelled):
                await job.result(PROMPTLY)
            assert not await job.cancel(), "it has ended"
    assert runs == [3, 4]
    assert await size(redis, queue.name) == NOTHING


async def test_a_retrying_job_is_cancelled_while_it_waits(queue: Queue) -> None:
    runs: list[int] = []

    @queue.task(retry=Retry(delays=(60,)))
    async def task() -> None:
        runs.append(1)
        raise ValueError

    async with queue, queue.worker(concurrency=1) as worker:
        job = await task.enqueue()
        await eventually(lambda: worker.info().retried == 1)
        assert await job.cancel()
        with pytest.raises(JobCancelled):
            await job.result(PROMPTLY)
    assert runs == [1]


async def test_a_running_coroutine_gets_cancelled_error_and_is_not_retried(queue: Queue, redis: Redis) -> None:
    begun, seen = asyncio.Event(), []

    @queue.task(retry=AT_ONCE)
    async def task() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(current_job().cancelled)
            await asyncio.sleep(0.01)
            raise

    async with queue, queue.worker(concurrency=1) as worker:
        job = await task.enqueue()
        await begun.wait()
        waiting = asyncio.create_task(job.result(PROMPTLY))
        assert await job.cancel()
        with pytest.raises(JobCancelled):
            await waiting
        assert worker.info().cancelled == 1
    assert seen == [True]
    assert await size(redis, queue.name) == NOTHING
    assert not await redis.exists(f"aq:{{{queue.name}}}:cancelled")


async def test_a_thread_sees_the_flag(queue: Queue) -> None:
    begun, seen = threading.Event(), threading.Event()

    @queue.task()
    def task() -> None:
        begun.set()
        deadline = time.monotonic() + PROMPTLY
        while time.monotonic() < deadline:
            if current_job().cancelled:
                seen.set()
                return
            time.sleep(0.01)

    async with queue, queue.worker(concurrency=1):
        job = await task.enqueue()
        await eventually(begun.is_set)
        await job.cancel()
        with pytest.raises(JobCancelled):
            await job.result(PROMPTLY)
        await eventually(seen.is_set)


async def test_a_value_returned_in_spite_of_the_cancel_counts(queue: Queue) -> None:
    begun = asyncio.Event()

    @queue.task()
    async def task() -> str:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "finished first"
        return ""

    async with queue, queue.worker(concurrency=1):
        job = await task.enqueue()
        await begun.wait()
        await job.cancel()
        assert await job.result(PROMPTLY) == "finished first"


async def test_a_cancelled_job_that_also_times_out_is_cancelled_and_not_retried(queue: Queue) -> None:
    begun, runs = asyncio.Event(), []

    @queue.task(timeout=0.4, retry=AT_ONCE)
    async def task() -> None:
        runs.append(1)
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60)  # slow to clean up: the timeout ends this

    async with queue, queue.worker(concurrency=1):
        job = await task.enqueue()
        await begun.wait()
        await job.cancel()
        with pytest.raises(JobCancelled):
            await job.result(PROMPTLY)
    assert runs == [1]


async def test_jobs_cancelled_as_they_start_end_cancelled_and_give_their_slots_back(queue: Queue) -> None:
    @queue.task()
    async def task() -> str:
        await asyncio.sleep(0.001)
        return "ran"

    async with queue, queue.worker(concurrency=3) as worker:
        for _ in range(20):
            jobs = await queue.enqueue_many([task.call() for _ in range(5)])
            await asyncio.gather(*(job.cancel() for job in jobs))
            for job in jobs:
                with suppress(JobCancelled):
                    assert await job.result(PROMPTLY) == "ran"
        await eventually(lambda: worker.running == 0)
        assert await (await task.enqueue()).result(PROMPTLY) == "ran"


async def test_a_job_cancelled_between_its_claim_and_its_first_step_ends_cancelled(
    queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Worker._start

    def start_and_cancel(worker: Worker, delivery: Delivery) -> None:
        start(worker, delivery)
        delivery.halt("cancelled")

    monkeypatch.setattr(Worker, "_start", start_and_cancel)

    @queue.task()
    async def task() -> None:
        await asyncio.sleep(60)

    async with queue, queue.worker(concurrency=1) as worker:
        for _ in range(3):
            with pytest.raises(JobCancelled):
                await (await task.enqueue()).result(PROMPTLY)
        await eventually(lambda: worker.running == 0)
    assert await size(redis, queue.name) == NOTHING


@pytest.mark.parametrize("why", ["cancelled", "lost"])
async def test_a_job_stopped_while_other_partitions_are_asked_never_starts(
    server: TestServer, name: str, monkeypatch: pytest.MonkeyPatch, why: StopReason
) -> None:
    """Between its claim and its start other partitions are asked for more; orders may come meanwhile."""
    claim = Source.claim

    async def claim_and_stop(source: Source, wanted: int, wait_s: float = 0.0) -> list[Delivery]:
        deliveries = await claim(source, wanted, wait_s)
        for delivery in deliveries:
            delivery.halt(why)
            if why == "lost":
                del source.held[delivery.lane][delivery.entry]
        return deliveries

    queue = queue_of(server, name, partitions=2, visibility_timeout=0.3)
    runs: list[int] = []

    @queue.task()
    async def task() -> int:
        runs.append(1)
        return 1

    async with queue, queue.worker(concurrency=5) as worker:
        with monkeypatch.context() as patched:
            patched.setattr(Source, "claim", claim_and_stop)
            await eventually(lambda: worker.running == 0)
            jobs = [await task.enqueue() for _ in range(4)]
            if why == "cancelled":
                for job in jobs:
                    with pytest.raises(JobCancelled):
                        await job.result(PROMPTLY)
        if why == "lost":
            assert [await job.result(PROMPTLY) for job in jobs] == [1] * 4
        assert worker.running == 0
    assert len(runs) == (4 if why == "lost" else 0)


async def test_cancelling_nothing_is_false(queue: Queue) -> None:
    async with queue:
        assert not await queue.cancel("no-such-job")


async def test_a_cancel_whose_message_is_lost_is_carried_out_with_the_next_heartbeat(launch: Launch) -> None:
    server = launch()
    queue = queue_of(server, "t")
    begun = asyncio.Event()

    @queue.task()
    async def task() -> None:
        begun.set()
        await asyncio.sleep(60)

    async with queue, queue.worker(concurrency=1, heartbeat=0.1), connect(server.url) as redis:
        job = await task.enqueue()
        await begun.wait()
        # Who hears nothing at the moment of the PUBLISH never hears of it.
        await raw(redis, "CLIENT", "KILL", "TYPE", "pubsub")
        assert await job.cancel()
        with pytest.raises(JobCancelled):
            await job.result(PROMPTLY)


async def test_cancel_frees_the_uniqueness_key(queue: Queue) -> None:
    begun = asyncio.Event()

    @queue.task()
    async def task() -> None:
        begun.set()
        await asyncio.sleep(60)

    async with queue:
        first = await task.options(unique="k").enqueue()
        assert (await task.options(unique="k").enqueue()) == first
        await first.cancel()
        second = await task.options(unique="k").enqueue()
        assert second.created
        assert second != first
        async with queue.worker(concurrency=1):
            await begun.wait()
            await second.cancel()
            with pytest.raises(JobCancelled):
                await second.result(PROMPTLY)
        third = await task.options(unique="k").enqueue()
        assert third.created
        await third.cancel()


async def test_no_result_is_kept_of_a_cancelled_job_when_results_are_not(server: TestServer, name: str) -> None:
    queue = queue_of(server, name, result_ttl=0)

    @queue.task()
    async def task() -> None: ...

    async with queue:
        job = await task.enqueue()
        assert await job.cancel()
        with pytest.raises(JobNotFound):
            await job.result(PROMPTLY)

"""Which jobs start, when, and in what order."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from redis.asyncio import Redis

from asyncq import ConfigError, Queue, Retry, Worker, current_job
from asyncq.worker import sources, timekeeper
from tests.eventually import eventually
from tests.servers import TestServer
from tests.worker.recording import AT_ONCE, NOTHING, PROMPTLY, queue_of, size

LANES = ("high", "default", "low")


@pytest.fixture
def queue(server: TestServer, name: str) -> Queue:
    return queue_of(server, name, lanes=LANES)


@pytest.fixture
def no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the bell ends a wait, and only news wakes the timekeeper."""
    monkeypatch.setattr(sources, "BELL_WAIT_S", 60.0)
    monkeypatch.setattr(timekeeper, "LONGEST_S", 60.0)


async def run_dry(queue: Queue, **settings: Any) -> Worker:
    """A burst worker from start to end."""
    worker = Worker(queue, burst=True, **settings)
    async with asyncio.timeout(30):
        await worker.run()
    return worker


# -- order and limits -------------------------------------------------------------------------------------


async def test_higher_lanes_go_first(queue: Queue) -> None:
    order: list[str] = []

    @queue.task()
    async def task(lane: str) -> None:
        order.append(lane)

    async with queue:
        for lane in ("low", "default", "high", "low", "high", "default"):
            await task.options(lane=lane).enqueue(lane)
        await run_dry(queue, concurrency=1)
    assert order == ["high", "high", "default", "default", "low", "low"]


async def test_a_job_of_a_high_lane_overtakes_what_already_waits(queue: Queue) -> None:
    order: list[str] = []

    @queue.task()
    async def task(lane: str) -> None:
        order.append(lane)
        if len(order) == 2:
            await task.options(lane="high").enqueue("high")

    async with queue:
        await queue.enqueue_many([task.options(lane="low").call("low") for _ in range(6)])
        await run_dry(queue, concurrency=1)
    assert order == ["low", "low", "high", "low", "low", "low", "low"]


@pytest.mark.parametrize("concurrency", [1, 7])
async def test_concurrency_is_reached_and_never_exceeded(queue: Queue, concurrency: int, no_polling: None) -> None:
    running, most, ended = 0, 0, 0

    @queue.task()
    async def task() -> None:
        nonlocal running, most, ended
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        ended += 1

    async with queue:
        await queue.enqueue_many([task.call() for _ in range(60)])
        await run_dry(queue, concurrency=concurrency)
    assert most == concurrency
    assert ended == 60


@pytest.mark.parametrize("concurrency", [1, 10])
async def test_a_reserved_share_is_served_while_higher_lanes_are_full(
    server: TestServer, name: str, concurrency: int
) -> None:
    queue = queue_of(server, name, lanes=LANES, shares={"low": 0.2})
    order: list[str] = []

    @queue.task(result_ttl=0)
    async def task(lane: str) -> None:
        order.append(lane)
        await asyncio.sleep(0)

    async with queue:
        await queue.enqueue_many([task.options(lane="high").call("high") for _ in range(400)])
        await queue.enqueue_many([task.options(lane="low").call("low") for _ in range(400)])
        await run_dry(queue, concurrency=concurrency)
    assert Counter(order) == {"high": 400, "low": 400}
    first = Counter(order[:400])
    assert 60 <= first["low"] <= 100, first


async def test_without_a_share_a_low_lane_waits(queue: Queue, no_polling: None) -> None:
    order: list[str] = []

    @queue.task(result_ttl=0)
    async def task(lane: str) -> None:
        order.append(lane)

    async with queue:
        await queue.enqueue_many([task.options(lane="low").call("low") for _ in range(50)])
        await queue.enqueue_many([task.options(lane="high").call("high") for _ in range(50)])
        await run_dry(queue, concurrency=3)
    assert order == ["high"] * 50 + ["low"] * 50


async def test_several_workers_share_the_work_and_no_job_runs_twice(queue: Queue, redis: Redis) -> None:
    runs: Counter[int] = Counter()
    all_busy = asyncio.Barrier(3)

    @queue.task(result_ttl=0)
    async def task(number: int) -> None:
        runs[number] += 1
        if number < 3:
            await asyncio.wait_for(all_busy.wait(), PROMPTLY)  # only if three workers have one each

    async with queue, queue.worker(concurrency=1), queue.worker(concurrency=1), queue.worker(concurrency=1):
        await queue.enqueue_many([task.call(number) for number in range(300)])

        async def drained() -> bool:
            return await size(redis, queue.name) == NOTHING

        await eventually(drained, 20)
    assert runs == Counter(range(300))


async def test_a_worker_of_some_lanes_leaves_the_others_alone(queue: Queue) -> None:
    order: list[str] = []

    @queue.task()
    async def task(lane: str) -> None:
        order.append(lane)

    async with queue:
        jobs = [await task.options(lane=lane).enqueue(lane) for lane in LANES]
        await run_dry(queue, concurrency=5, lanes=("low", "high"))
        assert order == ["high", "low"]
        assert (await jobs[1].info()).state == "queued"
        with pytest.raises(ConfigError, match="has no lane 'middle'; it has high, default, low"):
            Worker(queue, lanes=("middle",))


async def test_burst_ends_when_nothing_is_left_even_of_what_jobs_enqueued(queue: Queue, no_polling: None) -> None:
    done: list[int] = []

    @queue.task()
    async def task(depth: int) -> None:
        await asyncio.sleep(0.01)
        if depth:
            await queue.enqueue_many([task.call(depth - 1) for _ in range(2)])
        done.append(depth)

    async with queue:
        await task.enqueue(5)
        await run_dry(queue, concurrency=4)
    assert Counter(done) == {5 - n: 2**n for n in range(6)}


async def test_burst_on_an_empty_queue_ends_at_once(queue: Queue) -> None:
    async with queue:
        await run_dry(queue, concurrency=4)


async def test_max_jobs_ends_the_worker_after_so_many(queue: Queue, redis: Redis) -> None:
    runs: list[int] = []

    @queue.task(result_ttl=0)
    async def task(number: int) -> None:
        runs.append(number)

    async with queue:
        await queue.enqueue_many([task.call(number) for number in range(20)])
        worker = Worker(queue, max_jobs=7, concurrency=3)
        async with asyncio.timeout(PROMPTLY):
            await worker.run()
        assert runs == list(range(7))
        assert (await size(redis, queue.name))["lanes"] == 13


async def test_a_worker_that_has_grown_too_large_ends_and_hands_over(queue: Queue) -> None:
    runs: list[int] = []

    @queue.task(result_ttl=0)
    async def task(number: int) -> None:
        runs.append(number)

    async with queue:
        worker = Worker(queue, max_memory=1, heartbeat=0.05)  # MiB; any Python is larger
        async with asyncio.timeout(PROMPTLY):
            await worker.run()
        assert worker.used_up
        await task.enqueue(1)
        roomy = Worker(queue, max_memory=100_000, heartbeat=0.05, burst=True)
        async with asyncio.timeout(PROMPTLY):
            await roomy.run()
        assert (roomy.used_up, runs) == (False, [1])


# -- pause ------------------------------------------------------------------------------------------------


async def test_a_paused_queue_hands_out_nothing_until_resumed(queue: Queue, no_polling: None) -> None:
    @queue.task()
    async def task() -> str:
        return "ran"

    async with queue:
        await queue.pause()
        async with queue.worker(concurrency=2):
            job = await task.enqueue()
            other = await task.options(lane="high").enqueue()
            assert (await job.info()).state == "queued"
            await queue.resume()
            assert await job.result(PROMPTLY) == "ran"
            assert await other.result(PROMPTLY) == "ran"


async def test_a_paused_lane_waits_while_others_go_on(queue: Queue, no_polling: None) -> None:
    @queue.task()
    async def task() -> str:
        return "ran"

    async with queue:
        await queue.pause("high")
        async with queue.worker(concurrency=2):
            held = await task.options(lane="high").enqueue()
            assert await (await task.options(lane="low").enqueue()).result(PROMPTLY) == "ran"
            assert (await held.info()).state == "queued"
            await queue.resume("high")
            assert await held.result(PROMPTLY) == "ran"
        with pytest.raises(ConfigError, match="no lane 'nope'"):
            await queue.pause("nope")


# -- waking up --------------------------------------------------------------------------------------------


async def test_an_idle_worker_starts_a_new_job_at_once(queue: Queue, redis: Redis, no_polling: None) -> None:
    @queue.task()
    async def task() -> float:
        return time.monotonic()

    async with queue, queue.worker(concurrency=5):
        for _ in range(5):
            await _someone_waits_for_the_bell(redis)
            enqueued = time.monotonic()
            started = await (await task.enqueue()).result(PROMPTLY)
            assert started - enqueued < 1.0


async def _someone_waits_for_the_bell(redis: Redis, count: int = 1) -> None:
    async def blocked() -> bool:
        return int((await redis.info("clients"))["blocked_clients"]) >= count

    await eventually(blocked)


async def test_a_worker_of_some_lanes_does_not_take_the_bell_of_others(
    queue: Queue, redis: Redis, no_polling: None
) -> None:
    @queue.task()
    async def task() -> str:
        return "done"

    # Whoever waits longest is woken first: one bell for all lanes would wake the worker of the wrong one.
    for first, second in (("high", "low"), ("low", "high")):
        async with queue, queue.worker(concurrency=1, lanes=(first,)):
            await _someone_waits_for_the_bell(redis)
            async with queue.worker(concurrency=1, lanes=(second,)):
                await _someone_waits_for_the_bell(redis, 2)
                assert await (await task.options(lane=second).enqueue()).result(PROMPTLY) == "done"


async def test_the_bell_wakes_one_worker_after_another_while_there_is_work(
    queue: Queue, redis: Redis, no_polling: None
) -> None:
    all_running = asyncio.Barrier(4)

    @queue.task()
    async def task() -> None:
        await asyncio.wait_for(all_running.wait(), PROMPTLY)

    async with (
        queue,
        queue.worker(concurrency=1),
        queue.worker(concurrency=1),
        queue.worker(concurrency=1),
        queue.worker(concurrency=1),
    ):
        await _someone_waits_for_the_bell(redis, 4)
        jobs = await queue.enqueue_many([task.call() for _ in range(4)])
        for job in jobs:
            await job.result(PROMPTLY)


async def test_delayed_jobs_run_when_they_are_due_and_not_before(queue: Queue, redis: Redis, no_polling: None) -> None:
    @queue.task()
    async def task() -> float:
        return time.time()

    async with queue, queue.worker(concurrency=5):
        await _someone_waits_for_the_bell(redis)
        enqueued = time.time()
        late = await task.options(delay=0.6).enqueue()
        assert (await late.info()).state == "scheduled"
        # Each is due before the one the timekeeper has been waiting for.
        soon = await task.options(delay=0.3).enqueue()
        sooner = await task.options(delay=0.1).enqueue()
        for job, delay in ((sooner, 0.1), (soon, 0.3), (late, 0.6)):
            waited = await job.result(PROMPTLY) - enqueued
            assert delay - 0.01 <= waited < delay + 2.0


async def test_a_retry_with_a_short_delay_comes_back_promptly(queue: Queue, redis: Redis, no_polling: None) -> None:
    @queue.task(retry=Retry(attempts=6, backoff="constant", base=0.02, jitter=False))
    async def task() -> int:
        if current_job().attempt < 6:
            raise ValueError
        return current_job().attempt

    @queue.task(retry=AT_ONCE)
    async def at_once() -> int:
        if current_job().attempt < 3:
            raise ValueError
        return current_job().attempt

    async with queue, queue.worker(concurrency=50):
        later = await at_once.options(delay=3_000).enqueue()
        jobs = await queue.enqueue_many([task.call() for _ in range(30)])
        for job in jobs:
            assert await job.result(PROMPTLY) == 6
        assert await (await at_once.enqueue()).result(PROMPTLY) == 3
        assert await later.cancel()


async def test_partitions_are_all_served(server: TestServer, name: str, redis: Redis, no_polling: None) -> None:
    queue = queue_of(server, name, partitions=3)
    runs: list[int] = []

    @queue.task()
    async def task(number: int) -> int:
        runs.append(number)
        return number

    async with queue, queue.worker(concurrency=2):
        jobs = await queue.enqueue_many([task.call(number) for number in range(30)])
        assert {job.id.rpartition("~")[2] for job in jobs} == {"0", "1", "2"}
        assert [await job.result(PROMPTLY) for job in jobs] == list(range(30))
        await _someone_waits_for_the_bell(redis)
        for number in range(6):
            assert await (await task.enqueue(number)).result(PROMPTLY) == number
        delayed = [await task.options(delay=0.1).enqueue(number) for number in range(3)]
        assert [await job.result(PROMPTLY) for job in delayed] == [0, 1, 2]
    assert len(runs) == 39

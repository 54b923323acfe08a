"""Stops and deploys: they cost no retry, no visibility timeout, and leave nothing behind."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from asyncq import Job, Queue, Worker, current_job
from asyncq.errors import ConfigError
from asyncq.keys import Keys
from tests.conftest import Launch, connect
from tests.eventually import eventually
from tests.proxy import Proxy
from tests.servers import TestServer
from tests.worker.recording import NOTHING, PROMPTLY, consumers, queue_of, size


@pytest.fixture
def queue(server: TestServer, name: str) -> Queue:
    return queue_of(server, name)


async def test_a_stopping_worker_hands_back_what_has_not_ended_at_once(queue: Queue, redis: Redis) -> None:
    seen: list[tuple[int, int]] = []
    begun = asyncio.Semaphore(0)

    @queue.task(retry=1)
    async def task() -> str:
        job = current_job()
        seen.append((job.attempt, job.crashes))
        if len(seen) <= 3:
            begun.release()
            await asyncio.sleep(60)
        return "done"

    assert queue.settings.visibility_timeout == 30
    async with queue:
        async with queue.worker(concurrency=3, grace=0):
            jobs = [await task.enqueue() for _ in range(3)]
            for _ in jobs:
                await begun.acquire()
        assert {(await job.info()).state for job in jobs} == {"queued"}
        began = time.monotonic()
        async with queue.worker(concurrency=3):
            assert [await job.result(PROMPTLY) for job in jobs] == ["done"] * 3
        assert time.monotonic() - began < PROMPTLY
    assert seen == [(1, 0)] * 6
    assert await size(redis, queue.name) == NOTHING


async def test_within_the_grace_jobs_end_and_are_recorded(queue: Queue, redis: Redis) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @queue.task()
    async def task() -> str:
        begun.set()
        await go_on.wait()
        return "in time"

    async with queue:
        async with queue.worker(concurrency=1, grace=PROMPTLY) as worker:
            job, next_job = await task.enqueue(), await task.enqueue()
            await begun.wait()
            worker.stop()
            assert worker.phase == "stopping"
            go_on.set()
        assert (await job.info()).state == "succeeded"
        assert (await next_job.info()).state == "queued", "nothing is claimed after the stop"
        await next_job.cancel()


async def test_a_second_stop_ends_the_grace(queue: Queue) -> None:
    begun = asyncio.Event()

    @queue.task()
    async def task() -> None:
        begun.set()
        await asyncio.sleep(600)

    async with queue:
        job = await task.enqueue()
        worker = Worker(queue, concurrency=1, grace=500)
        running = asyncio.create_task(worker.run())
        await begun.wait()
        worker.stop()
        worker.stop()
        await asyncio.wait_for(running, PROMPTLY)
        assert (await job.info()).state == "queued"


async def _is(job: Job[str], state: str) -> bool:
    return (await job.info()).state == state


async def test_a_job_that_comes_as_the_worker_goes_quiet_runs_or_waits_for_another(queue: Queue) -> None:
    """The claim that went along with the wait may be carried out in the very moment the wait is ended."""

    @queue.task()
    async def task() -> str:
        return "done"

    async def settled(job: Job[str]) -> bool:
        return (await job.info()).state in ("queued", "succeeded")

    async with queue:
        for _ in range(20):
            async with queue.worker(concurrency=5) as worker:
                await (await task.enqueue()).result(PROMPTLY)
                coming = asyncio.create_task(task.enqueue())
                await asyncio.sleep(0)
                worker.quiet()
                job = await coming
                await eventually(functools.partial(settled, job))
            await queue.empty()


async def test_a_quiet_worker_finishes_what_it_has_and_takes_nothing_more(queue: Queue) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @queue.task()
    async def task() -> str:
        begun.set()
        await go_on.wait()
        return "done"

    async with queue:
        async with queue.worker(concurrency=5) as worker:
            job = await task.enqueue()
            await begun.wait()
            worker.quiet()
            other = await task.enqueue()
            go_on.set()
            assert await job.result(PROMPTLY) == "done"
            await eventually(lambda: _is(other, "queued"))
            assert worker.phase == "quiet"
            worker.stop()
        async with queue.worker(concurrency=1):
            assert await other.result(PROMPTLY) == "done"


async def test_code_that_will_not_stop_does_not_hold_the_worker_for_ever(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncq.worker.worker.UNWIND_S", 0.2)
    begun, go_on = asyncio.Event(), asyncio.Event()

    @queue.task()
    async def task() -> str:
        if begun.is_set():
            return "again"
        begun.set()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue
        return "too late"

    async with queue:
        async with queue.worker(concurrency=1, grace=0) as worker:
            job = await task.enqueue()
            await begun.wait()
        assert (await job.info()).state == "queued"
        go_on.set()
        await eventually(lambda: worker._slots.taken == 0)
        async with queue.worker(concurrency=1):
            assert await job.result(PROMPTLY) == "again"


async def test_a_worker_leaves_no_trace_in_the_books(queue: Queue, redis: Redis) -> None:
    @queue.task(result_ttl=0)
    async def task() -> None:
        await asyncio.sleep(0)

    async with queue:
        for _ in range(3):
            async with queue.worker(concurrency=20, heartbeat=0.01) as worker:
                await queue.enqueue_many([task.call() for _ in range(50)])
                registry = f"aq:{{{queue.name}}}:workers"

                async def entered(key: str = registry, consumer: str = worker.consumer) -> bool:
                    return bool(await redis.hexists(key, consumer))

                await eventually(entered)
            assert not await redis.exists(f"aq:{{{queue.name}}}:workers")
            assert await consumers(redis, queue.name) == []


async def test_a_dead_workers_entry_is_cleared_away(queue: Queue, redis: Redis) -> None:
    key = f"aq:{{{queue.name}}}:workers"
    await redis.hset(key, "gone:1", msgspec.json.encode({"name": "gone", "seen_ms": 1}))
    await redis.hset(key, "alive:1", msgspec.json.encode({"name": "alive", "seen_ms": time.time_ns() // 1_000_000}))
    await redis.hset(key, "odd:1", b"\xff not json")
    async with queue, queue.worker(concurrency=1) as worker:

        async def names() -> bool:
            names: Any = await redis.hkeys(key)
            return {name.decode() for name in names} == {"alive:1", "odd:1", worker.consumer}

        await eventually(names)


async def test_a_dead_worker_that_still_holds_jobs_stays_until_they_are_taken_back(
    server: TestServer, name: str, redis: Redis
) -> None:
    queue = queue_of(server, name, visibility_timeout=0.3)

    @queue.task()
    async def task() -> str:
        return "ran"

    key = f"aq:{{{name}}}:workers"
    async with queue:
        job = await task.enqueue()
        await queue.stores[0].make_groups()
        await queue.stores[0].claim("gone:1", 1, [0], [0])
        await redis.hset(key, "gone:1", msgspec.json.encode({"name": "gone", "seen_ms": 1}))
        assert await queue.stores[0].retire("gone:1") == 1
        async with queue.worker(concurrency=1, heartbeat=0.05):
            assert await job.result(PROMPTLY) == "ran"

            async def cleared() -> bool:
                return not await redis.hexists(key, "gone:1") and "gone:1" not in await consumers(redis, name)

            await eventually(cleared)


async def test_a_stop_while_the_server_is_down_ends_within_bounds(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncq.worker.worker.FLUSH_S", 0.5)
    server = launch()
    queue = queue_of(server, "t")
    begun, go_on = asyncio.Event(), asyncio.Event()

    @queue.task()
    async def task() -> None:
        begun.set()
        await go_on.wait()

    async with queue:
        worker = Worker(queue, concurrency=2, grace=0.2)
        running = asyncio.create_task(worker.run())
        await task.enqueue()
        await begun.wait()
        server.kill()
        worker.stop()
        await asyncio.wait_for(running, 20)


async def test_a_stop_while_the_server_hangs_ends_within_bounds_and_the_job_survives(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncq.worker.worker.FLUSH_S", 0.5)
    server = launch()
    queue = queue_of(server, "t", visibility_timeout=0.5)
    begun = asyncio.Event()
    numbers: list[int] = []

    @queue.task()
    async def task() -> int:
        numbers.append(1)
        if len(numbers) == 1:
            begun.set()
            await asyncio.sleep(60)
        return len(numbers)

    async with queue:
        worker = Worker(queue, concurrency=1, grace=0)
        running = asyncio.create_task(worker.run())
        job = await task.enqueue()
        await begun.wait()
        server.pause()
        try:
            worker.stop()
            await asyncio.wait_for(running, 20)
        finally:
            server.resume()
        async with queue.worker(concurrency=1):
            assert await job.result(PROMPTLY) == 2


async def test_a_worker_cancelled_while_it_starts_leaves_no_task_behind(launch: Launch) -> None:
    server = launch()
    queue = queue_of(server, "t")
    before = asyncio.all_tasks()
    async with queue:
        server.pause()
        try:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(Worker(queue, concurrency=1).__aenter__(), 0.2)
        finally:
            server.resume()
    assert asyncio.all_tasks() <= before


async def test_a_cancelled_worker_hands_back_too(queue: Queue, redis: Redis) -> None:
    begun = asyncio.Event()

    @queue.task()
    async def task() -> None:
        begun.set()
        await asyncio.sleep(60)

    async with queue:
        running = asyncio.create_task(Worker(queue, concurrency=1).run())
        job = await task.enqueue()
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        info = await job.info()
        assert (info.state, info.crashes, info.attempt) == ("queued", 0, 1)
        assert await consumers(redis, queue.name) == []


async def test_orders_on_the_control_channel_reach_the_worker(queue: Queue, redis: Redis) -> None:
    async with queue:
        worker = Worker(queue, concurrency=1, name="w")
        running = asyncio.create_task(worker.run())
        await worker.started.wait()
        channel = f"aq:{{{queue.name}}}:control"
        for order in (b"\xff\xfe", b"", b"nonsense w", b"quiet somebody-else", b"stacks *"):
            await redis.publish(channel, order)
        await redis.publish(channel, "quiet w")
        await eventually(lambda: worker.phase == "quiet")
        await redis.publish(channel, "stop *")
        await asyncio.wait_for(running, PROMPTLY)


async def test_a_connection_that_is_cut_while_the_worker_signs_off_costs_nothing(
    server: TestServer, name: str, redis: Redis
) -> None:
    begun = asyncio.Event()
    again: list[asyncio.Task[None]] = []
    async with Proxy(server) as proxy:
        queue = Queue(name, url=proxy.url)

        @queue.task()
        async def task() -> None:
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                proxy.refusing = True
                proxy.cut()
                again.append(asyncio.create_task(let_in(proxy.connections + 5)))

        async def let_in(after: int) -> None:
            await eventually(lambda: proxy.connections >= after)
            proxy.refusing = False

        async with queue:
            job = await task.enqueue()
            async with queue.worker(concurrency=1, grace=0):
                await begun.wait()
            await asyncio.gather(*again)
            info = await job.info()
            assert (info.state, info.crashes) == ("queued", 0)
            assert await redis.hlen(Keys(name).workers) == 0
            await queue.empty()


async def test_a_worker_signs_off_from_all_partitions_while_the_server_is_out_of_memory(launch: Launch) -> None:
    server = launch()
    queue = queue_of(server, "t", partitions=3)
    begun: list[int] = []

    @queue.task()
    async def task(number: int) -> None:
        begun.append(number)
        await asyncio.sleep(60)

    async with queue, connect(server.url) as redis:
        jobs = [await task.enqueue(number) for number in range(3)]
        async with queue.worker(concurrency=3, grace=0):
            await eventually(lambda: len(begun) == 3)
            await redis.config_set("maxmemory", 1)
        assert [(info.state, info.crashes) for info in [await job.info() for job in jobs]] == [("queued", 0)] * 3


async def test_a_worker_runs_once(queue: Queue) -> None:
    @queue.task()
    async def task() -> str:
        return "done"

    async with queue:
        worker = Worker(queue, concurrency=1)
        async with worker:
            with pytest.raises(ConfigError, match="make another one"):
                async with worker:
                    pass
            assert await (await task.enqueue()).result(PROMPTLY) == "done"
        with pytest.raises(ConfigError, match="make another one"):
            await worker.run()

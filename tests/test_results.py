"""`Job.result()`: pushed by the server, and looked up where a message may have been lost."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from redis.asyncio import Redis

from asyncq import (
    Job,
    JobExpired,
    JobFailed,
    JobNotEnded,
    JobNotFound,
    Queue,
    waiter,
)
from tests.conftest import Launch, connect
from tests.eventually import eventually
from tests.servers import TestServer
from tests.worker.recording import PROMPTLY, commands, queue_of, raw


@pytest.fixture
def queue(server: TestServer, name: str) -> Queue:
    return queue_of(server, name)


@pytest.fixture
def no_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a message tells of an ending."""
    monkeypatch.setattr(waiter, "LOOK_AGAIN_S", 1_000.0)


async def _waits(redis: Redis, queue: Queue, job: Job[Any]) -> None:
    async def waiting() -> bool:
        return bool(await redis.sismember(f"aq:{{{queue.name}}}:waiters", job.id))

    await eventually(waiting)


async def test_an_ending_is_pushed_to_whoever_waits(queue: Queue, redis: Redis, no_looking: None) -> None:
    go_on = asyncio.Event()

    @queue.task()
    async def task() -> float:
        await go_on.wait()
        return time.monotonic()

    async with queue, queue.worker(concurrency=2):
        job = await task.enqueue()
        waiting = asyncio.create_task(job.result(PROMPTLY))
        await _waits(redis, queue, job)
        go_on.set()
        ended = await waiting
        assert time.monotonic() - ended < 1.0


async def test_waiting_costs_no_commands(launch: Launch, no_looking: None) -> None:
    server = launch()
    queue = queue_of(server, "t")

    @queue.task()
    async def task() -> None: ...

    async with queue, connect(server.url) as redis:
        job = await task.enqueue()
        waiting = asyncio.create_task(job.result(60))
        await _waits(redis, queue, job)
        before = await commands(redis)
        looked = 0
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            await redis.ping()
            looked += 1
        assert await commands(redis) - before - looked <= 2
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_many_may_wait_for_one_job(server: TestServer, queue: Queue, redis: Redis, no_looking: None) -> None:
    go_on = asyncio.Event()

    @queue.task()
    async def task() -> str:
        await go_on.wait()
        return "for all"

    elsewhere = queue_of(server, queue.name)
    async with queue, elsewhere, queue.worker(concurrency=2):
        job = await task.enqueue()
        handles = [job] * 20 + [Job(queue, job.id) for _ in range(5)] + [Job(elsewhere, job.id) for _ in range(5)]
        waiting = [asyncio.create_task(handle.result(PROMPTLY)) for handle in handles]
        impatient = asyncio.create_task(job.result(0.05))
        await _waits(redis, queue, job)
        with pytest.raises(JobNotEnded):
            await impatient
        channel = f"aq:{{{queue.name}}}:ended:{job.id}"

        async def both_listen() -> bool:
            (_, listeners), *_ = await redis.pubsub_numsub(channel)
            return bool(listeners == 2)

        await eventually(both_listen)
        go_on.set()
        assert await asyncio.gather(*waiting) == ["for all"] * len(handles)
        assert (await redis.pubsub_numsub(channel))[0][1] == 0 or await eventually(
            lambda: _nobody_listens(redis, channel)
        )


async def _nobody_listens(redis: Redis, channel: str) -> bool:
    return bool((await redis.pubsub_numsub(channel))[0][1] == 0)


async def test_a_job_that_ended_already_answers_at_once(queue: Queue, no_looking: None) -> None:
    @queue.task(retry=1)
    async def task(fails: bool) -> int:
        if fails:
            raise ValueError("no")
        return 3

    async with queue, queue.worker(concurrency=2):
        good, bad = await task.enqueue(False), await task.enqueue(True)
        await eventually(lambda: _ended(good))
        await eventually(lambda: _ended(bad))
        for _ in range(2):
            assert await good.result(PROMPTLY) == 3
            with pytest.raises(JobFailed, match="ValueError: no") as caught:
                await bad.result(PROMPTLY)
        assert "raise ValueError" in caught.value.traceback
        assert caught.value.job_id == bad.id
        assert await (await queue.job(good.id)).result(PROMPTLY) == 3


async def _ended(job: Job[int]) -> bool:
    return (await job.info()).state in ("succeeded", "failed")


async def test_an_unknown_job_is_not_found(queue: Queue, no_looking: None) -> None:
    async with queue:
        with pytest.raises(JobNotFound, match="nothing is known of job nobody"):
            await Job(queue, "nobody").result(PROMPTLY)
        with pytest.raises(JobNotFound):
            await queue.job("nobody")


async def test_waiting_ends_with_the_timeout_and_may_be_repeated(queue: Queue, no_looking: None) -> None:
    @queue.task()
    async def task() -> int:
        return 1

    async with queue:
        job = await task.enqueue()
        for timeout in (0.0, 0.001, 0.05, 0.05):
            with pytest.raises(JobNotEnded, match="has not ended within"):
                await job.result(timeout)
        waiting = asyncio.create_task(job.result(PROMPTLY))
        async with queue.worker(concurrency=1):
            assert await waiting == 1


async def test_an_expired_job_says_so(queue: Queue, no_looking: None) -> None:
    @queue.task()
    async def task() -> None: ...

    async with queue:
        job = await task.options(expires=0).enqueue()
        waiting = asyncio.create_task(job.result(PROMPTLY))
        await asyncio.sleep(0.01)  # a millisecond of the server's clock must pass
        async with queue.worker(concurrency=1):
            with pytest.raises(JobExpired, match="not started in time"):
                await waiting
            assert (await job.info()).state == "expired"


async def test_a_listener_that_lost_its_connection_still_learns_of_the_ending(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiter, "LOOK_AGAIN_S", 0.2)
    server = launch()
    queue = queue_of(server, "t")
    go_on = asyncio.Event()

    @queue.task()
    async def task() -> str:
        await go_on.wait()
        return "told"

    async with queue, queue.worker(concurrency=5), connect(server.url) as redis:
        jobs = [await task.enqueue() for _ in range(3)]
        waiting = [asyncio.create_task(job.result(PROMPTLY)) for job in jobs]
        for job in jobs:
            await _waits(redis, queue, job)
        assert await raw(redis, "CLIENT", "KILL", "TYPE", "pubsub") >= 1
        go_on.set()
        assert await asyncio.gather(*waiting) == ["told"] * 3
        assert await (await task.enqueue()).result(PROMPTLY) == "told"


async def test_after_a_reconnect_endings_are_pushed_again(launch: Launch, no_looking: None) -> None:
    server = launch()
    queue = queue_of(server, "t")
    go_on = asyncio.Event()

    @queue.task()
    async def task() -> str:
        await go_on.wait()
        return "told"

    async with queue, queue.worker(concurrency=5), connect(server.url) as redis:
        job = await task.enqueue()
        waiting = asyncio.create_task(job.result(PROMPTLY))
        await _waits(redis, queue, job)
        await raw(redis, "CLIENT", "KILL", "TYPE", "pubsub")

        async def listens_again() -> bool:
            return bool((await redis.pubsub_numsub(f"aq:{{t}}:ended:{job.id}"))[0][1])

        await eventually(listens_again)
        go_on.set()
        assert await waiting == "told"


async def test_waiting_may_begin_while_the_server_is_away(launch: Launch) -> None:
    server = launch(aof=True, appendfsync="always")
    queue = queue_of(server, "t")

    @queue.task()
    async def task() -> str:
        return "told"

    async with queue:
        async with queue.worker(concurrency=1):
            assert await (await task.enqueue()).result(PROMPTLY) == "told"  # now there is a listener
        job = await task.enqueue()
        server.kill()
        waiting = asyncio.create_task(job.result(PROMPTLY))
        with pytest.raises(JobNotEnded):
            await job.result(0.1)  # it has tried by now
        server.restart()
        async with queue.worker(concurrency=1):
            assert await waiting == "told"


async def test_who_gave_up_waiting_listens_no_more(launch: Launch) -> None:
    server = launch()
    queue = queue_of(server, "t")

    @queue.task()
    async def task() -> None: ...

    async with queue, connect(server.url) as redis:
        job = await task.enqueue()
        for timeout in (0.05, 0.0, 0.0001, 0.001):
            with pytest.raises(JobNotEnded):
                await job.result(timeout)
        await eventually(lambda: _nobody_listens(redis, f"aq:{{t}}:ended:{job.id}"))
        listener = queue._waiter._listener
        assert listener is not None
        assert not listener._handlers


async def test_a_value_that_does_not_fit_the_annotation_is_said_clearly(queue: Queue) -> None:
    @queue.task()
    async def task() -> int:
        return "seven"  # type: ignore[return-value]

    async with queue, queue.worker(concurrency=1):
        with pytest.raises(Exception, match="Expected `int`, got `str`"):
            await (await task.enqueue()).result(PROMPTLY)


async def test_a_job_that_was_revived_while_somebody_looked_is_awaited_again(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    @queue.task()
    async def task() -> int:
        return 7

    async with queue:
        job = await task.enqueue()
        store, looks = queue.stores[0], 0
        watch = store.watch

        async def gone_at_first(ids: list[str]) -> list[bool]:
            nonlocal looks
            looks += 1
            return [False] if looks == 1 else await watch(ids)

        monkeypatch.setattr(store, "watch", gone_at_first)
        waiting = asyncio.create_task(job.result(PROMPTLY))
        await eventually(lambda: looks > 1)
        async with queue.worker(concurrency=1):
            assert await waiting == 7

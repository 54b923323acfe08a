"""Trials: a job is buried only for what it did alone."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from redis.asyncio import Redis

from asyncq import Queue
from tests.eventually import eventually
from tests.servers import TestServer
from tests.worker.crashing import LANES, own, runs
from tests.worker.recording import PROMPTLY, letters, queue_of, worker_process


@pytest.fixture
def queue(server: TestServer, name: str) -> Queue:
    return queue_of(server, name, lanes=LANES)


async def test_who_stood_beside_a_poisonous_job_is_not_buried_with_it(
    server: TestServer, queue: Queue, name: str, redis: Redis, tmp_path: Path
) -> None:
    own(queue, "die", "hold")
    async with queue:
        # They wait for a file, so all of them run whenever the poisonous one kills the process.
        beside = [await queue.tasks["hold"].enqueue(str(tmp_path), "go") for _ in range(3)]
        poison = await queue.tasks["die"].enqueue(str(tmp_path))
        while (await poison.info()).state != "failed":
            with worker_process("crashing", server.url, name, "0.3") as process:

                async def over(process: subprocess.Popen[bytes] = process) -> bool:
                    info = await poison.info()
                    if info.crashes >= 2:
                        (tmp_path / "go").touch()
                    return process.poll() is not None or info.state == "failed"

                await eventually(over, 30)
        async with queue.worker(concurrency=4):
            for job in beside:
                assert await job.result(PROMPTLY) == "held"
    assert [letter["id"] for letter in await letters(redis, name)] == [poison.id]
    assert runs(tmp_path).count("ended") == 3


async def test_suspects_run_one_at_a_time_and_the_others_beside_them(queue: Queue) -> None:
    at_once = most = 0
    ended: list[str] = []

    @queue.task()
    async def task(kind: str, after: int) -> None:
        nonlocal at_once, most
        if kind == "suspect":
            at_once += 1
            most = max(most, at_once)
            await eventually(lambda: len(ended) >= after, PROMPTLY)
            at_once -= 1
        ended.append(kind)

    async with queue:
        store = queue.stores[0]
        await store.make_groups()
        # Each suspect goes on only when those before it, and the job that was never lost, have ended.
        suspects = await queue.enqueue_many(task.call("suspect", after) for after in (1, 2, 3))
        for _ in range(2):
            await store.claim("dead-worker", 10, [0], [0])
            assert await store.reclaim(0, "somebody", 0, b"0-0", 3, 0) == (b"0-0", 3, 0)
        fine = await task.enqueue("fine", 0)
        async with queue.worker(concurrency=10):
            await fine.result(PROMPTLY)
            for job in suspects:
                await job.result(PROMPTLY)
    assert most == 1
    assert ended == ["fine", "suspect", "suspect", "suspect"]


async def test_a_suspect_that_waits_can_be_cancelled_and_is_handed_back_on_stop(queue: Queue) -> None:
    begun: list[int] = []

    @queue.task()
    async def task(number: int) -> None:
        begun.append(number)
        await eventually(lambda: False, 60)

    async with queue:
        store = queue.stores[0]
        await store.make_groups()
        jobs = await queue.enqueue_many(task.call(number) for number in range(3))
        for _ in range(2):
            await store.claim("dead-worker", 10, [0], [0])
            await store.reclaim(0, "somebody", 0, b"0-0", 3, 0)
        async with queue.worker(concurrency=10, grace=0):
            await eventually(lambda: begun == [0])
            assert await jobs[1].cancel()
            assert await jobs[0].cancel()
            await eventually(lambda: begun == [0, 2])
        info = await jobs[2].info()
        assert (info.state, info.crashes, info.attempt) == ("queued", 2, 1)
        assert (await jobs[1].info()).state == "cancelled"
        await queue.empty()


async def test_no_trial_begins_while_the_worker_stops(queue: Queue) -> None:
    begun: list[int] = []
    stubborn, may_end = asyncio.Event(), asyncio.Event()

    @queue.task()
    async def task(number: int) -> None:
        begun.append(number)
        await eventually(lambda: False, 60)

    @queue.task()
    async def takes_its_time() -> None:
        stubborn.set()
        try:
            await eventually(lambda: False, 60)
        finally:
            await may_end.wait()

    async with queue:
        store = queue.stores[0]
        await store.make_groups()
        jobs = await queue.enqueue_many(task.call(number) for number in range(2))
        for _ in range(2):
            await store.claim("dead-worker", 10, [0], [0])
            await store.reclaim(0, "somebody", 0, b"0-0", 3, 0)
        await takes_its_time.enqueue()
        async with queue.worker(concurrency=10, grace=0) as worker:
            await eventually(lambda: begun and stubborn.is_set())
            worker.stop()
            # The trial has been stopped, and the next one would begin now.
            await eventually(lambda: worker.running == 1)
            may_end.set()
        assert begun == [0]
        assert {(await job.info()).state for job in jobs} == {"queued"}
        await queue.empty()

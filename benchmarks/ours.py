"""asyncq itself: the same questions as in `bare`, through the public API."""

from __future__ import annotations

import asyncio
import time

from asyncq import Queue, Worker

__all__ = ["drain", "enqueue_from", "enqueue_many"]


async def enqueue_many(queue: Queue, jobs: int, task: str = "add") -> float:
    """Jobs a second through `enqueue_many`."""
    call = queue.find_task(task).call
    begun = time.perf_counter()
    made = await queue.enqueue_many(call(i, 1) for i in range(jobs))
    took = time.perf_counter() - begun
    assert len({job.id for job in made}) == jobs
    return jobs / took


async def enqueue_from(queue: Queue, coroutines: int, jobs: int) -> float:
    """Jobs a second from so many coroutines that each await one enqueue after another."""
    task = queue.find_task("add")

    async def produce(count: int) -> None:
        for i in range(count):
            await task.enqueue(i, 1)

    begun = time.perf_counter()
    await asyncio.gather(*(produce(jobs // coroutines) for _ in range(coroutines)))
    return jobs / (time.perf_counter() - begun)


async def drain(queue: Queue, jobs: int, concurrency: int) -> float:
    """Jobs a second from the start of a worker until the outcome of each is in Redis."""
    async with Worker(queue, concurrency=concurrency) as worker:
        begun = time.perf_counter()
        while worker.info().succeeded < jobs:
            await asyncio.sleep(0.002)
        took = time.perf_counter() - begun
        assert worker.info().succeeded == jobs
    return jobs / took

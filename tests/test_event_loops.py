"""One queue object and several event loops: one after the other is fine, two at a time are refused."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import anyio.from_thread
import pytest
from anyio.from_thread import start_blocking_portal

from asyncq import ConfigError, Job, JobFailed, Queue
from tests.servers import TestServer
from tests.worker.recording import PROMPTLY, queue_of


@pytest.fixture
def queue(server: TestServer, name: str) -> Queue:
    return queue_of(server, name)


def test_one_loop_after_the_other(queue: Queue) -> None:
    @queue.task()
    async def double(number: int) -> int:
        return 2 * number

    async def once(number: int) -> int:
        async def open_and_close() -> None:
            async with queue:
                pass

        await asyncio.gather(*[open_and_close() for _ in range(3)])  # They wait for each other.
        async with queue, queue.worker(concurrency=1):
            return await (await double.enqueue(number)).result(PROMPTLY)

    assert [asyncio.run(once(number)) for number in (1, 2)] == [2, 4]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_ended_without_closing_leaves_nothing_in_the_way(queue: Queue) -> None:
    @queue.task()
    async def task() -> None: ...

    async def forgetful() -> None:
        await queue.__aenter__()
        await task.enqueue()

    async def careful() -> int:
        async with queue:
            await task.enqueue()
            return await queue.empty()

    asyncio.run(forgetful())
    assert asyncio.run(careful()) == 2
    gc.collect()  # What it left open is complained of here.


async def test_a_second_loop_beside_the_first_is_refused(queue: Queue) -> None:
    @queue.task()
    async def task() -> None: ...

    async def opens() -> None:
        async with queue:
            pass

    def run(use: Callable[[], Coroutine[Any, Any, object]]) -> None:
        asyncio.run(use())

    async with queue:
        job = await task.enqueue()
        uses: list[Callable[[], Coroutine[Any, Any, object]]] = [
            opens,
            task.enqueue,
            job.info,
            job.cancel,
            functools.partial(job.result, PROMPTLY),
        ]
        for use in uses:
            with pytest.raises(ConfigError, match="is open in another event loop"):
                await asyncio.to_thread(run, use)
        assert await queue.empty() == 1


async def test_a_thread_enqueues_through_the_loop_of_its_worker(queue: Queue) -> None:
    @queue.task()
    async def next_one(number: int) -> int:
        return number

    @queue.task(retry=1)
    def follow_up(number: int) -> str:
        return anyio.from_thread.run(next_one.enqueue, number).id

    @queue.task(retry=1)
    def in_a_loop_of_its_own(number: int) -> str:
        return asyncio.run(next_one.enqueue(number)).id

    async with queue, queue.worker(concurrency=2):
        follower = await queue.job(await (await follow_up.enqueue(7)).result(PROMPTLY))
        assert await follower.result(PROMPTLY) == 7
        with pytest.raises(JobFailed, match="is open in another event loop"):
            await (await in_a_loop_of_its_own.enqueue(7)).result(PROMPTLY)


def test_synchronous_threads_share_one_loop(queue: Queue) -> None:
    @queue.task()
    async def double(number: int) -> int:
        return 2 * number

    results: list[int] = []
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(queue):

        def request(number: int) -> None:
            job: Job[int] = portal.call(double.enqueue, number)
            results.append(portal.call(job.result, PROMPTLY))

        with portal.wrap_async_context_manager(queue.worker(concurrency=2)):
            threads = [threading.Thread(target=request, args=(number,)) for number in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert sorted(results) == [0, 2, 4, 6, 8]

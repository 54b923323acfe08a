"""Whatever happens to the server: nothing that it kept is lost, no job ends twice, and the worker goes on."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from asyncq import Job, JobFailed, Queue, Worker
from asyncq.errors import AsyncqError
from tests.conftest import Launch, connect
from tests.eventually import eventually
from tests.servers import TestServer
from tests.worker.recording import AT_ONCE, NOTHING, PROMPTLY, commands, counters, queue_of, raw, size

PATIENTLY = 30.0


class Work:
    """Numbered jobs of a queue `t`, every run and ending of which is counted."""

    def __init__(self, server: TestServer, **settings: Any) -> None:
        self.queue = queue_of(server, "t", **{"result_ttl": 60, **settings})
        self.runs: Counter[int] = Counter()
        self.go_on = asyncio.Event()

        @self.queue.task(retry=AT_ONCE)
        async def task(number: int) -> int:
            self.runs[number] += 1
            await asyncio.sleep(0.002)
            return number

        @self.queue.task(retry=AT_ONCE)
        async def wait(number: int) -> int:
            self.runs[number] += 1
            await self.go_on.wait()
            return number

        self.task, self.wait = task, wait

    async def enqueue(self, count: int) -> list[Job[int]]:
        return await self.queue.enqueue_many([self.task.call(number) for number in range(count)])

    async def all_ended(self, jobs: list[Job[int]]) -> None:
        """Each has its own outcome."""
        assert [await job.result(PATIENTLY) for job in jobs] == list(range(len(jobs)))


async def keep_disturbing(jobs: list[Job[int]], runs: Counter[int], disturb: Callable[[], Awaitable[object]]) -> None:
    """Disturb again and again until every job has begun."""
    while len(runs) < len(jobs):
        await disturb()
        await asyncio.sleep(0.02)


async def test_connections_killed_during_work_cost_no_outcome(launch: Launch) -> None:
    server = launch()
    work = Work(server, visibility_timeout=1.0)
    async with work.queue, work.queue.worker(concurrency=10), connect(server.url) as redis:
        jobs = await work.enqueue(600)
        await keep_disturbing(jobs, work.runs, lambda: raw(redis, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
        await work.all_ended(jobs)
        assert (await counters(redis))["succeeded"] == 600
        assert await size(redis, "t") == NOTHING


async def test_a_flushed_script_cache_is_filled_again(launch: Launch) -> None:
    server = launch()
    work = Work(server)
    async with work.queue, work.queue.worker(concurrency=10), connect(server.url) as redis:
        jobs = await work.enqueue(400)
        await keep_disturbing(jobs, work.runs, lambda: raw(redis, "SCRIPT", "FLUSH", "SYNC"))
        await work.all_ended(jobs)
        assert work.runs == Counter(range(400)), "nothing was lost, so nothing ran twice"
        assert (await counters(redis))["succeeded"] == 400


async def test_a_killed_server_that_comes_back_with_its_data_loses_nothing(
    launch: Launch, caplog: pytest.LogCaptureFixture
) -> None:
    server = launch(aof=True, appendfsync="always")
    work = Work(server, visibility_timeout=1.0)
    with caplog.at_level(logging.WARNING, "asyncq.worker"):
        async with work.queue, work.queue.worker(concurrency=20):
            waiting = [await work.wait.enqueue(number) for number in range(300, 305)]
            await eventually(lambda: len(work.runs) == 5)
            jobs = await work.enqueue(300)
            await eventually(lambda: len(work.runs) >= 100)
            server.kill()
            work.go_on.set()  # these end while nobody can record it
            await eventually(lambda: "cannot record endings" in caplog.text)
            server.restart()
            await work.all_ended([*jobs, *waiting])
            async with connect(server.url) as redis:

                async def nothing_left() -> bool:
                    return await size(redis, "t") == NOTHING

                await eventually(nothing_left, PATIENTLY)
                assert (await counters(redis))["succeeded"] == 305
    said = [record.getMessage() for record in caplog.records]
    assert any("Trying again until it works" in line for line in said)
    assert any("works again after" in line for line in said)
    assert len([line for line in said if "cannot claim jobs" in line]) <= 4, "an outage is said once, not each try"


async def test_endings_wait_in_memory_while_the_server_is_away(launch: Launch) -> None:
    server = launch(aof=True, appendfsync="always")
    work = Work(server)
    async with work.queue, work.queue.worker(concurrency=5) as worker:
        jobs = [await work.wait.enqueue(number) for number in range(5)]
        await eventually(lambda: len(work.runs) == 5)
        server.kill()
        work.go_on.set()
        await eventually(lambda: worker._finisher.waiting == 5)
        server.restart()
        await work.all_ended(jobs)
        assert work.runs == Counter(range(5)), "what has ended is recorded, not run again"


async def test_a_flushed_server_is_worked_with_again(launch: Launch) -> None:
    server = launch()
    work = Work(server, visibility_timeout=0.6)
    async with work.queue, work.queue.worker(concurrency=5) as worker, connect(server.url) as redis:
        lost = await work.wait.enqueue(7)
        await eventually(lambda: work.runs[7] == 1)
        await redis.flushall()
        jobs = await work.enqueue(50)
        await work.all_ended(jobs)
        work.go_on.set()
        await eventually(lambda: worker.running == 0)
        await work.all_ended(await work.enqueue(3))
        with pytest.raises(AsyncqError, match="nothing is known"):
            await lost.result(PROMPTLY)
        delayed = await work.task.options(delay=0.05).enqueue(1)
        assert await delayed.result(PROMPTLY) == 1


async def test_a_hanging_server_is_waited_for(launch: Launch) -> None:
    server = launch()
    work = Work(server, visibility_timeout=0.5)
    async with work.queue, work.queue.worker(concurrency=5), connect(server.url) as redis:
        jobs = await work.enqueue(200)
        await eventually(lambda: len(work.runs) >= 20)
        server.pause()
        await asyncio.sleep(0.8)  # longer than the leases
        server.resume()
        await work.all_ended(jobs)
        assert (await counters(redis))["succeeded"] == 200
        assert await size(redis, "t") == NOTHING


async def fill_memory(redis: Redis) -> None:
    await redis.config_set("maxmemory", 1)


async def test_endings_are_recorded_while_the_server_is_out_of_memory(launch: Launch) -> None:
    server = launch()
    work = Work(server)

    @work.queue.task(retry=AT_ONCE)
    async def fails(number: int) -> None:
        work.runs[number] += 1
        await work.go_on.wait()
        raise ValueError

    async with work.queue, work.queue.worker(concurrency=10), connect(server.url) as redis:
        jobs = [await work.wait.enqueue(number) for number in range(5)]
        failing = [await fails.enqueue(number) for number in range(5, 8)]
        await eventually(lambda: len(work.runs) == 8)
        await fill_memory(redis)
        work.go_on.set()

        async def recorded() -> bool:
            return (await counters(redis))["succeeded"] == 5

        await eventually(recorded, PATIENTLY)
        await redis.config_set("maxmemory", 0)
        await work.all_ended(jobs)
        for job in failing:
            with pytest.raises(JobFailed) as caught:
                await job.result(PATIENTLY)
            assert caught.value.attempts == 3
        assert work.runs == Counter({**dict.fromkeys(range(5), 1), **dict.fromkeys(range(5, 8), 3)})


async def test_a_key_of_another_type_in_place_of_a_lane_stops_only_that_lane(
    launch: Launch, caplog: pytest.LogCaptureFixture
) -> None:
    server = launch()
    queue = queue_of(server, "t", lanes=("high", "default", "low"), visibility_timeout=0.5)
    begun, go_on = asyncio.Event(), asyncio.Event()
    runs: list[str] = []

    @queue.task()
    async def task(lane: str) -> str:
        runs.append(lane)
        return lane

    @queue.task()
    async def hold() -> str:
        runs.append("held")
        begun.set()
        await go_on.wait()
        return "held"

    async with queue, connect(server.url) as redis:
        worker = Worker(queue, concurrency=5, grace=0.1)
        running = asyncio.create_task(worker.run())
        in_high, in_low = await hold.options(lane="high").enqueue(), await hold.options(lane="low").enqueue()
        await eventually(lambda: runs == ["held", "held"])
        with caplog.at_level(logging.WARNING, "asyncq.worker"):
            await redis.delete("aq:{t}:lane:high")
            await redis.set("aq:{t}:lane:high", "somebody else's")
            for lane in ("default", "low"):
                assert await (await task.options(lane=lane).enqueue(lane)).result(PROMPTLY) == lane
            # Leases of the other lanes are kept although those of this one cannot be.
            await redis.zadd("aq:{t}:scheduled", {"nobody": 1})
            await asyncio.sleep(1.2)
            before = await commands(redis)
            await asyncio.sleep(1.0)
            assert await commands(redis) - before < 200, "it spins"
            go_on.set()
            assert await in_low.result(PROMPTLY) == "held"
            assert runs.count("held") == 2
        said = "\n".join(record.getMessage() for record in caplog.records)
        assert "a lane cannot be read: aq:{t}:lane:high: WRONGTYPE" in said
        await redis.delete("aq:{t}:lane:high")
        assert await (await task.options(lane="high").enqueue("high")).result(PROMPTLY) == "high"
        assert in_high.id
        worker.stop()
        await asyncio.wait_for(running, PATIENTLY)


async def test_jobs_lost_behind_a_lane_that_cannot_be_read_are_taken_back(launch: Launch) -> None:
    server = launch()
    queue = queue_of(server, "t", lanes=("high", "default"), visibility_timeout=0.3)

    @queue.task()
    async def task() -> str:
        return "ran"

    async with queue, queue.worker(concurrency=5), connect(server.url) as redis:
        await redis.delete("aq:{t}:lane:high")
        await redis.set("aq:{t}:lane:high", "somebody else's")
        await queue.pause()
        job = await task.enqueue()
        await redis.xreadgroup("workers", "dead-worker", {"aq:{t}:lane:default": ">"})
        await queue.resume()
        assert await job.result(PROMPTLY) == "ran"


async def test_after_an_outage_a_lane_that_cannot_be_read_does_not_stop_the_claims(launch: Launch) -> None:
    server = launch()
    queue = queue_of(server, "t", lanes=("high", "default"))

    @queue.task()
    async def task() -> str:
        return "ran"

    async with queue, queue.worker(concurrency=5) as worker, connect(server.url) as redis:
        await redis.delete("aq:{t}:lane:high")
        await redis.set("aq:{t}:lane:high", "somebody else's")
        for source in worker._sources.sources:
            source.unsure = True  # as after a claim without an answer
        assert await (await task.enqueue()).result(PROMPTLY) == "ran"


@pytest.mark.parametrize("place", ["dead", "scheduled"])
async def test_endings_that_cannot_be_recorded_hold_up_no_others(launch: Launch, place: str) -> None:
    """More of them than a batch holds."""
    server = launch()
    queue = queue_of(server, "t")
    go_on = asyncio.Event()

    @queue.task(retry=1 if place == "dead" else AT_ONCE)
    async def fails() -> None:
        await go_on.wait()
        raise ValueError("no")

    @queue.task()
    async def works(number: int) -> int:
        await go_on.wait()
        return number

    async with queue, queue.worker(concurrency=700) as worker, connect(server.url) as redis:
        bad = await queue.enqueue_many([fails.call() for _ in range(520)])
        good = await queue.enqueue_many([works.call(number) for number in range(5)])
        await eventually(lambda: worker.running == 525, PATIENTLY)
        await redis.set(f"aq:{{t}}:{place}", "somebody else's")
        go_on.set()
        assert [await job.result(PATIENTLY) for job in good] == list(range(5))
        await eventually(lambda: worker._finisher.waiting == 520, PATIENTLY)
        await redis.delete(f"aq:{{t}}:{place}")

        async def all_buried() -> bool:
            return bool(await redis.xlen("aq:{t}:dead") == 520)

        await eventually(all_buried, PATIENTLY)
        for job in bad[:3] + bad[-3:]:
            with pytest.raises(JobFailed, match="ValueError: no"):
                await job.result(PATIENTLY)
        assert await size(redis, "t") == {**NOTHING, "dead": 520, "index": 520}


async def test_more_than_a_batch_left_by_an_unanswered_claim_is_handed_back(queue_with_many: Queue) -> None:
    """A worker at high concurrency holds more entries than one look shows."""
    queue = queue_with_many
    store = queue.stores[0]
    await store.make_groups()
    for _ in range(3):
        await store.claim("w", 500, [0], [0])
    (lane, entries), *others = await store.held("w")
    assert (lane, len(entries), others) == (0, 1_200, [])
    assert len(set(entries)) == 1_200


@pytest.fixture
async def queue_with_many(server: TestServer, name: str) -> Any:
    queue = queue_of(server, name)

    @queue.task()
    async def task() -> None: ...

    async with queue:
        await queue.enqueue_many([task.call() for _ in range(1_200)])
        yield queue

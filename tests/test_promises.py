"""The promises, one test each: what asyncq says of itself in one page, shown through its public face."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from asyncq import Job, JobExpired, JobFailed, Queue, Reject, Retry, lifecycle
from asyncq.clock import now_ms
from asyncq.keys import GROUP, Keys
from tests.conftest import Launch, connect
from tests.eventually import eventually
from tests.proxy import Proxy
from tests.servers import TestServer
from tests.worker import crashing
from tests.worker.recording import AT_ONCE, NOTHING, PROMPTLY, counters, letters, queue_of, size, worker_process

PATIENTLY = 30.0


async def test_promise_1_a_returned_enqueue_is_in_redis_exactly_once(
    server: TestServer, name: str, redis: Redis
) -> None:
    """Even when the reply was lost and the push was repeated."""
    async with Proxy(server) as proxy, Queue(name, url=proxy.url, result_ttl=0) as queue:
        runs: Counter[int] = Counter()

        @queue.task()
        async def task(number: int) -> None:
            runs[number] += 1

        jobs: list[Job[None]] = []
        for number in range(10):
            proxy.lose_replies = 1
            jobs.append(await task.enqueue(number))
        proxy.lose_replies = 1
        jobs += await queue.enqueue_many([task.call(number) for number in range(10, 20)])
        assert proxy.lost == 11
        assert (await size(redis, name))["lanes"] == 20
        assert {job.id.encode() for job in jobs} == set(await redis.hkeys(Keys(name).index))
        async with queue_of(server, name) as near:
            near.tasks = queue.tasks
            async with near.worker(burst=True) as worker:
                await eventually(lambda: worker.phase != "running")
        assert runs == Counter(range(20))


async def test_promise_2_exactly_one_outcome_of_each_job_is_recorded(launch: Launch) -> None:
    """However often the code ran: workers are lost, connections cut, replies lost."""
    server = launch()
    async with Proxy(server) as proxy, connect(server.url) as redis:
        outside = queue_of(server, "t", visibility_timeout=0.4, max_crashes=99)
        inside = Queue("t", url=proxy.url, visibility_timeout=0.4, max_crashes=99)

        async def work(number: int) -> int:
            await asyncio.sleep(0.001)
            if number % 10 == 0:
                raise Reject("every tenth")
            return number

        task = outside.task(retry=AT_ONCE)(work)
        inside.task(retry=AT_ONCE)(work)
        async with outside, inside, inside.worker(concurrency=5), outside.worker(concurrency=5):
            jobs = await outside.enqueue_many([task.call(number) for number in range(400)])
            waiting = asyncio.gather(*(job.result(PATIENTLY) for job in jobs), return_exceptions=True)
            for _ in range(10):
                proxy.lose_replies = 3
                await asyncio.sleep(0.02)
                proxy.cut()
                for source in outside.stores:
                    await source.reclaim(0, "thief", 0, b"0-0", 99, now_ms())
            endings = await waiting
        for number, ending in enumerate(endings):
            if number % 10 == 0:
                assert isinstance(ending, JobFailed)
            else:
                assert ending == number
        counts = await counters(redis)
        assert (counts["succeeded"], counts["dead"]) == (360, 40)
        assert await size(redis, "t") == {**NOTHING, "dead": 40, "index": 40}


async def test_promise_3_a_job_leaves_its_lane_only_with_its_ending(launch: Launch) -> None:
    """At every moment, a job is in a lane, scheduled, or its ending is recorded; what is killed is still there."""
    server = launch(aof=True, appendfsync="always")
    queue = queue_of(server, "t", visibility_timeout=0.5)

    @queue.task(retry=Retry(attempts=2, backoff="constant", base=0.01, jitter=False))
    async def task(number: int) -> int:
        if number % 3 == 0:
            raise ValueError(number)
        return number

    async def accounted() -> int:
        """Jobs in any of the places, in one glance; MULTI sees no moment between two steps of a script."""
        async with redis.pipeline(transaction=True) as glance:
            glance.xlen("aq:{t}:lane:default")
            glance.zcard("aq:{t}:scheduled")
            glance.xlen("aq:{t}:dead")
            glance.eval("return #redis.call('KEYS', 'aq:{t}:result:*')", 0)
            glance.hlen("aq:{t}:parked")
            lane, scheduled, dead, results, parked = await glance.execute()
        assert scheduled == parked
        return int(lane + scheduled + dead + results)

    async with queue:
        jobs = await queue.enqueue_many([task.call(number) for number in range(300)])
        async with queue.worker(concurrency=10) as worker:
            async with connect(server.url) as redis:
                while worker.info().succeeded < 60:
                    assert await accounted() == 300
            server.kill()
            server.restart()
            async with connect(server.url) as redis:

                async def all_ended() -> bool:
                    assert await accounted() == 300
                    return await size(redis, "t") == {**NOTHING, "dead": 100, "index": 100}

                await eventually(all_ended, PATIENTLY)
        assert [(await job.info()).state for job in jobs[:3]] == ["failed", "succeeded", "succeeded"]


@pytest.mark.parametrize("does", ["returns", "fails", "retries"])
async def test_promise_4_who_lost_the_lease_can_neither_finish_retry_nor_bury(
    server: TestServer, name: str, redis: Redis, does: str
) -> None:
    queue = queue_of(server, name)
    begun, go_on = asyncio.Event(), asyncio.Event()

    @queue.task(retry=AT_ONCE if does == "retries" else 1)
    async def task() -> str:
        begun.set()
        await go_on.wait()
        if does == "returns":
            return "from the worker that had lost it"
        raise ValueError

    async with queue:
        store = queue.stores[0]
        async with queue.worker(concurrency=1) as worker:
            job = await task.enqueue()
            await begun.wait()
            # Another worker takes it back and holds it: now it is that worker's.
            await queue.pause()
            assert (await store.reclaim(0, "other", 0, b"0-0", 99, now_ms()))[1] == 1
            held: Any = await redis.xreadgroup(GROUP, "other", {Keys(name).lane("default"): ">"})
            go_on.set()
            await eventually(lambda: worker._finisher.stale == 1 or worker.info().succeeded)
            await eventually(lambda: worker.running == 0)
        info = await job.info()
        assert (info.state, info.worker, info.attempt, info.crashes) == ("running", "other", 1, 1)
        assert await size(redis, name) == {**NOTHING, "lanes": 1, "index": 1}
        await store.release(0, [entry for _, entries in held for entry, _ in entries])
        await queue.resume()
        async with queue.worker(concurrency=1):
            await asyncio.gather(job.result(PROMPTLY), return_exceptions=True)


async def test_promise_5_a_crash_burns_no_retry_and_too_many_are_poison(
    server: TestServer, name: str, redis: Redis, tmp_path: Path
) -> None:
    queue = queue_of(server, name, lanes=crashing.LANES, visibility_timeout=0.3)
    hold = queue.task(retry=1)(crashing.hold.function)
    die = queue.task(retry=1)(crashing.die.function)
    runs = tmp_path / "runs"

    def begun() -> int:
        return runs.read_text().count("begun") if runs.exists() else 0

    async with queue:
        survivor = await hold.enqueue(str(tmp_path), "go")
        with worker_process("crashing", server.url, name, "0.3") as process:
            await eventually(lambda: begun() == 1, PATIENTLY)
            process.send_signal(signal.SIGKILL)
            process.wait()
        (tmp_path / "go").touch()
        async with queue.worker(concurrency=1):
            assert await survivor.result(PROMPTLY) == "held", "its only attempt was not used up by the crash"
            assert (await survivor.info()).attempt == 1
        poison = await die.enqueue(str(tmp_path))
        for _ in range(queue.settings.max_crashes):
            with worker_process("crashing", server.url, name, "0.3") as process:
                await eventually(lambda: process.poll() is not None, PATIENTLY)
        async with queue.worker(concurrency=1):
            with pytest.raises(JobFailed, match="crashed or was lost 3 times"):
                await poison.result(PROMPTLY)
    assert [letter["reason"] for letter in await letters(redis, name)] == ["poison"]


async def test_promise_6_nothing_is_dropped_silently(
    server: TestServer, name: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every job that cannot run ends in the dead letters, with its reason."""
    monkeypatch.setattr(lifecycle, "DEFER", Retry(attempts=2, backoff="constant", base=0.01))
    queue = queue_of(server, name, visibility_timeout=0.3, max_crashes=1)
    producer = queue_of(server, name)

    @producer.task()
    async def nobody_knows_me() -> None: ...

    @producer.task(name="changed")
    async def before(text: str) -> None: ...

    @queue.task(name="changed")
    async def after(number: int) -> None: ...

    @queue.task(retry=1)
    async def fails() -> None:
        raise ValueError

    @queue.task()
    async def rejects() -> None:
        raise Reject("no")

    @queue.task()
    async def unencodable() -> object:
        return object()

    lane = Keys(name).lane("default")
    async with queue, producer:
        await queue.stores[0].make_groups()
        await fails.enqueue()
        await queue.stores[0].claim("lost-worker", 1, [0], [0])
        await redis.xadd(lane, {"what": "is", "this": "?"})
        await redis.xadd(lane, {"id": "newer", "job": b"\x63\0\1\0the future", "crashes": "0"})
        late = await fails.options(expires=0).enqueue()
        await asyncio.sleep(0.005)
        await nobody_knows_me.enqueue()
        await before.enqueue("seven")
        await fails.enqueue()
        await rejects.enqueue()
        await unencodable.enqueue()
        async with queue.worker(concurrency=3):

            async def all_buried() -> bool:
                return len(await letters(redis, name)) == len(lifecycle.REASONS)

            await eventually(all_buried, PATIENTLY)
        with pytest.raises(JobExpired):
            await late.result(PROMPTLY)
    buried = await letters(redis, name)
    assert {letter["reason"] for letter in buried} == set(lifecycle.REASONS)
    assert all(letter["error"] for letter in buried)
    assert (await size(redis, name))["lanes"] == (await size(redis, name))["scheduled"] == 0


async def test_promise_7_a_deploy_costs_no_retry_and_no_visibility_timeout(
    server: TestServer, name: str, redis: Redis, tmp_path: Path
) -> None:
    queue = queue_of(server, name, lanes=crashing.LANES, visibility_timeout=600)
    hold = queue.task(retry=1)(crashing.hold.function)
    runs = tmp_path / "runs"
    async with queue:
        jobs = [await hold.enqueue(str(tmp_path), "go") for _ in range(3)]
        with worker_process("crashing", server.url, name, "600") as process:
            await eventually(lambda: runs.exists() and runs.read_text().count("begun") == 3, PATIENTLY)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        (tmp_path / "go").touch()
        began = time.monotonic()
        async with queue.worker(concurrency=3):
            for job in jobs:
                assert await job.result(PROMPTLY) == "held"
        assert time.monotonic() - began < PROMPTLY
        for job in jobs:
            info = await job.info()
            assert (info.state, info.attempt, info.crashes) == ("succeeded", 1, 0)
    counts = await counters(redis, name)
    assert counts == {"enqueued": 3, "succeeded": 3}


async def test_promise_8_an_outage_loses_nothing_that_was_acknowledged(launch: Launch) -> None:
    server = launch(aof=True, appendfsync="always")
    queue = queue_of(server, "t", visibility_timeout=3)
    runs: Counter[int] = Counter()
    go_on = asyncio.Event()

    @queue.task(retry=1)
    async def task(number: int) -> int:
        runs[number] += 1
        await go_on.wait()
        return number

    async with queue, queue.worker(concurrency=5) as worker:
        jobs = await queue.enqueue_many([task.call(number) for number in range(20)])
        await eventually(lambda: len(runs) == 5)
        server.kill()
        go_on.set()
        await eventually(lambda: worker.running == 0)
        server.restart()
        assert await asyncio.gather(*(job.result(PATIENTLY) for job in jobs)) == list(range(20))
        assert runs == Counter(range(20)), "outcomes waited in memory, so nothing ran again"
        assert await (await task.enqueue(20)).result(PATIENTLY) == 20

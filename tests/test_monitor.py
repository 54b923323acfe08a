"""What `monitor`, `overview` and `dead` say of a queue."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from asyncq import Queue, codec, dead, monitor, overview
from asyncq.clock import now_ms
from asyncq.dead import DeadFilter
from asyncq.keys import Keys
from asyncq.monitor import COUNTERS
from asyncq.worker import Worker
from asyncq.workerinfo import WorkerInfo
from tests.eventually import eventually
from tests.servers import TestServer


@pytest.fixture
async def queue(name: str, server: TestServer) -> AsyncIterator[Queue]:
    queue = Queue(name, url=server.url, lanes=("high", "low"))

    @queue.task()
    async def fine(n: int) -> int:
        return n

    @queue.task(retry=1)
    async def bad(n: int) -> None:
        raise ValueError(f"number {n}")

    @queue.task(retry=2)
    async def again(n: int) -> None:
        raise ValueError(str(n))

    async with queue:
        yield queue


async def bury(queue: Queue, count: int) -> list[bytes]:
    """Dead letters straight into the stream: ids d0, d1, ..., oldest first."""
    found, keys = [], Keys(queue.name)
    for n in range(count):
        job = codec.frame(codec.Body("bad" if n % 2 else "fine", msgspec.Raw(codec.encode([n])), now_ms()))
        words: list[str | bytes] = [
            "id",
            f"d{n}",
            "lane",
            "high",
            "job",
            job,
            "reason",
            "failed",
            "error",
            f"ValueError: {n}",
        ]
        words += ["traceback", "", "attempts", "1", "crashes", "0", "worker", "w"]
        entry = await queue.link.command("XADD", keys.dead, "*", *words)
        await queue.link.command("HSET", keys.index, f"d{n}", b"dead " + entry)
        found.append(entry)
    return found


# -- jobs ----------------------------------------------------------------------------------------------------


async def test_queued_jobs_as_they_come_next(queue: Queue) -> None:
    (look,) = queue.monitors
    assert await look.jobs("queued") == []
    fine = queue.tasks["fine"]
    low = await queue.enqueue_many([fine.options(lane="low").call(n) for n in range(250)])
    high = [await fine.options(lane="high").enqueue(n) for n in range(2)]
    assert [job.id for job in await look.jobs("queued", limit=300)] == [job.id for job in high + low]
    assert [job.id for job in await look.jobs("queued", lane="low", limit=2)] == [job.id for job in low[:2]]
    assert [job.args for job in await look.jobs("queued", limit=1)] == [[0]]
    assert await look.jobs("queued", task="bad") == []
    assert await look.jobs("running") == []


async def test_running_jobs_are_not_queued(queue: Queue) -> None:
    (look,), (store,) = queue.monitors, queue.stores
    await store.make_groups()
    jobs = await queue.enqueue_many([queue.tasks["fine"].call(n) for n in range(250)])
    await store.claim("me:1", 120, [0, 1], [0, 0])
    running = await look.jobs("running", limit=500)
    assert [job.id for job in running] == [job.id for job in jobs[:120]]
    assert {(job.state, job.worker) for job in running} == {("running", "me:1")}
    assert [job.id for job in await look.jobs("queued", limit=500)] == [job.id for job in jobs[120:]]
    assert (await look.jobs("running", limit=1))[0] == await jobs[0].info()


async def test_scheduled_and_retrying(queue: Queue) -> None:
    (look,) = queue.monitors
    later = await queue.tasks["fine"].options(delay=200).enqueue(1)
    sooner = await queue.tasks["fine"].options(delay=100, lane="low").enqueue(1)
    failing = await queue.tasks["again"].enqueue(1)
    async with Worker(queue):
        (retrying,) = await eventually(lambda: look.jobs("retrying"))
    assert (retrying.id, retrying.attempt, retrying.lane) == (failing.id, 2, "high")
    assert [job.id for job in await look.jobs("scheduled")] == [sooner.id, later.id]
    assert [job.id for job in await look.jobs("scheduled", lane="high")] == [later.id]


async def test_ended_jobs_latest_first(queue: Queue) -> None:
    (look,) = queue.monitors
    async with Worker(queue):
        done = []
        for n in range(3):
            job = await queue.tasks["fine"].enqueue(n)
            await job.result(5)
            done.append(job.id)
        failed = await queue.tasks["bad"].enqueue(1)
        await eventually(lambda: look.jobs("failed"))
    # Endings of the same millisecond have no order.
    assert {job.id for job in await look.jobs("succeeded")} == set(done)
    ended = [job.ended_ms or 0 for job in await look.jobs("succeeded")]
    assert ended == sorted(ended, reverse=True)
    assert len(await look.jobs("succeeded", limit=2)) == 2
    assert [job.id for job in await look.jobs("failed")] == [failed.id]
    assert await look.jobs("expired") == await look.jobs("cancelled") == []


async def test_foreign_entries_are_shown(queue: Queue) -> None:
    (look,) = queue.monitors
    await queue.link.command("XADD", look.lane_keys[0], "*", "hello", "world")
    (job,) = await look.jobs("queued")
    assert (job.id, job.error) == ("", "an entry asyncq did not write")


async def test_search_is_bounded(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "MOST_LOOKED_AT", 5)
    (look,) = queue.monitors
    await queue.enqueue_many([queue.tasks["fine"].call(n) for n in range(6)])
    last = await queue.tasks["bad"].enqueue(1)
    assert await look.jobs("queued", task="bad") == []
    assert (await last.info()).task == "bad"


async def test_oldest_wait(queue: Queue) -> None:
    (look,) = queue.monitors
    assert await look.oldest_wait_s() == 0.0
    await queue.link.command("XADD", look.lane_keys[1], f"{now_ms() - 60_000}-0", "hello", "world")
    assert 59 < await look.oldest_wait_s() < 65


# -- dead letters --------------------------------------------------------------------------------------------


async def test_dead_letters_both_ways(queue: Queue) -> None:
    (look,) = queue.monitors
    assert [letter async for letter in look.dead_letters()] == []
    entries = await bury(queue, 250)
    assert [letter.entry async for letter in look.dead_letters(oldest_first=True)] == entries
    assert [letter.entry async for letter in look.dead_letters()] == entries[::-1]


async def test_what_dies_meanwhile_is_not_among_them(queue: Queue) -> None:
    """Else a replay of all would never end while replayed jobs die again."""
    (look,) = queue.monitors
    entries = await bury(queue, 3)
    seen = []
    async for letter in look.dead_letters(oldest_first=True):
        seen.append(letter.entry)
        await bury(queue, 1)
    assert seen == entries


async def test_replay_in_batches(queue: Queue) -> None:
    (look,) = queue.monitors
    await bury(queue, 1101)
    assert await dead.replay(queue, DeadFilter(task="bad"), limit=520) == 520
    assert await dead.replay(queue, DeadFilter(task="bad")) == 30
    assert await dead.purge(queue, DeadFilter(error="valueerror: 10")) == 56  # 10, 100 to 108, 1000 to 1098
    counts = await look.counts()
    assert (counts["dead"], counts["lanes"]["high"]["queued"]) == (1101 - 550 - 56, 550)
    assert sum([row["revived"] for row in await look.stats()]) == 550
    assert [job.id for job in await look.jobs("queued", limit=2)] == ["d1", "d3"]


# -- workers and rates ---------------------------------------------------------------------------------------


async def test_workers(queue: Queue) -> None:
    (look,), (store,) = queue.monitors, queue.stores
    lost = WorkerInfo(name="a", consumer="a:1", seen_ms=now_ms() - 60_000)
    await store.enter("a:1", msgspec.json.encode(lost))
    await store.enter("x:1", b"what a newer version writes")
    await store.enter("b:1", msgspec.json.encode(WorkerInfo(name="b", consumer="b:1", seen_ms=now_ms())))
    assert [(worker.name, worker.is_late) for worker in await look.workers()] == [("a", True), ("b", False)]
    whole = await overview.overview(queue.monitors)
    assert [worker.name for worker in whole.alive] == ["b"]


async def test_stats_are_one_row_a_minute(queue: Queue) -> None:
    (look,) = queue.monitors
    then = now_ms()
    await queue.link.command("HSET", look.keys.stats(then - 120_000), "enqueued", 7, "newer_counter", 1)
    await queue.link.command("EXPIRE", look.keys.stats(then - 120_000), 60)
    await queue.tasks["fine"].enqueue(1)
    rows = await look.stats(10)
    assert len(rows) == 10
    assert all(set(row) == {"minute", *COUNTERS} for row in rows)
    by_minute = {row["minute"]: row["enqueued"] for row in rows}
    assert by_minute[(then - 120_000) // 60_000 * 60_000] == 7
    assert sum(by_minute.values()) == 8


async def test_overview_adds_up_partitions(name: str, server: TestServer) -> None:
    queue = Queue(name, url=server.url, partitions=3)

    @queue.task()
    async def fine(n: int) -> int:
        return n

    async with queue:
        await queue.enqueue_many([fine.call(n) for n in range(30)])
        await fine.options(delay=100).enqueue(1)
        async with Worker(queue, name="one", heartbeat=0.05):
            whole = await eventually(lambda: _done(queue, 30))
        assert (whole.queued, whole.running, whole.scheduled, whole.dead) == (0, 0, 1, 0)
        assert [worker.name for worker in whole.workers] == ["one"]
        assert sum(row["enqueued"] for row in whole.minutes) == 31
        assert overview.per_second(whole.minutes, "enqueued") > 0
        assert (await overview.catalogue(queue.link))[name].partitions == 3
        assert (await overview.server_info(queue.link)).name == server.name


async def _done(queue: Queue, count: int) -> overview.Overview | None:
    whole = await overview.overview(queue.monitors)
    # The partitions are looked at one after the other, so what is done need not be what was queued.
    done = sum(row["succeeded"] for row in whole.minutes) == count and whole.queued == whole.running == 0
    return whole if done and whole.workers else None

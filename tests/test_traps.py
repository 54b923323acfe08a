"""The ways in which queues on Redis lose or double jobs without a word: an index, one test for each.

Each test is the shortest that fails if the guard against its trap is gone; the details are tested where the
guard lives.
"""

from __future__ import annotations

import asyncio
import fcntl
import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncq import Queue, connect, scripts
from asyncq.config import WorkerSettings
from asyncq.embedded import keeper
from asyncq.errors import ServerRefused, ServerUnavailable
from asyncq.keys import GROUP
from asyncq.link import Link
from asyncq.producer import NewJob, Producer
from asyncq.store import Store
from asyncq.worker import Worker
from tests.conftest import Launch
from tests.jobs import (
    ALL,
    DEFAULT,
    HIGH,
    LOW,
    amiss,
    bury,
    cancel,
    claim,
    deliveries,
    index,
    letters,
    open_store,
    outlive_lease,
    push,
    push_special,
    reclaim,
    retry,
    snapshot,
    succeed,
)
from tests.proxy import Proxy
from tests.servers import TestServer


@pytest.fixture
async def store(server: TestServer, name: str) -> AsyncIterator[Store]:
    async with open_store(server.url, name) as store:
        yield store
        assert await amiss(store) == []


async def test_trap_01_a_client_that_repeats_a_push_by_itself(server: TestServer, name: str, store: Store) -> None:
    """redis-py's retry runs a command twice when its reply is lost: ours must not, and tells instead."""
    async with Proxy(server) as proxy, open_store(proxy.url, name) as remote:
        await remote.link.command("SCRIPT", "LOAD", scripts.load("enqueue").source)
        proxy.lose_replies = 1
        with pytest.raises(ServerUnavailable):
            await remote.link.command("RPUSH", store.bell_keys[DEFAULT], "x")
        assert await store.link.command("LLEN", store.bell_keys[DEFAULT]) == 1
        proxy.lose_replies = 1
        await Producer(remote, 10).send(NewJob(DEFAULT, "a", b"job", None))
    assert len(await claim(store)) == 1


async def test_trap_02_a_push_token_that_is_set_too_early_or_forgotten_too_soon(store: Store) -> None:
    await store.link.command("SET", store.keys.parked, "in the way")
    with pytest.raises(ServerRefused):
        await push(store, "a", producer="p")
    assert await store.link.command("EXISTS", store.keys.producer("p")) == 0
    await store.link.command("DEL", store.keys.parked)
    await push(store, "a", producer="p")
    assert await store.link.command("TTL", store.keys.producer("p")) >= 600
    assert len(await claim(store)) == 1


async def test_trap_03_a_claim_whose_reply_was_lost(server: TestServer, name: str, store: Store) -> None:
    """What it took is found by asking what is ours, and handed back; renewal never covers more than we name."""
    await push(store, "a", "b")
    async with Proxy(server) as proxy, open_store(proxy.url, name) as remote:
        await remote.link.command("SCRIPT", "LOAD", scripts.load("claim").source)
        proxy.lose_replies = 1
        with pytest.raises(ServerUnavailable):
            await claim(remote, 1)
        known = await claim(remote, 1)
        ((lane, entries),) = await remote.held("w1")
        assert len(entries) == 2
        assert await remote.renew(lane, "w1", [known[0].entry]) == [known[0].entry]
        assert await remote.release(lane, [entry for entry in entries if entry != known[0].entry]) == 1
    assert [job.id for job in await claim(store, consumer="w2")] == ["a"]


async def test_trap_04_a_zombies_heartbeat(store: Store) -> None:
    await push(store, "a")
    (zombie,) = await claim(store)
    await outlive_lease(store, zombie)
    await reclaim(store)
    (job,) = await claim(store, consumer="w2")
    assert await store.renew(DEFAULT, "w1", [zombie.entry]) == []
    assert await store.held("w1") == []
    assert await store.renew(DEFAULT, "w2", [job.entry]) == [job.entry]


async def test_trap_05_a_zombies_finish(store: Store) -> None:
    await push(store, "a")
    (zombie,) = await claim(store)
    await outlive_lease(store, zombie)
    await reclaim(store)
    (job,) = await claim(store, consumer="w2")
    assert await succeed(store, zombie, record=b"first") == [zombie.entry]
    assert await succeed(store, job, record=b"second") == []
    assert await store.link.command("GET", store.keys.result("a")) == b"second"


async def test_trap_06_a_retry_or_burial_without_the_commit_token(store: Store) -> None:
    await push(store, "a", "b")
    a, b = await claim(store)
    for _ in range(2):
        await retry(store, a)
        await bury(store, b)
    await store.promote(DEFAULT)
    assert [job.id for job in await claim(store)] == ["a"]
    assert len(await letters(store)) == 1


async def test_trap_07_a_group_that_begins_at_the_end(store: Store) -> None:
    await push(store, "before the group")
    await store.make_groups()
    await push(store, "before the claim")
    assert len(await claim(store)) == 2
    await push(store, "low", lane=LOW)
    await store.link.command("XGROUP", "DESTROY", store.lane_keys[LOW], GROUP)
    assert [job.id for job in await claim(store)] == ["low"]


async def test_trap_08_what_was_acknowledged_and_not_deleted(store: Store) -> None:
    await push(store, "a", "b", "c")
    a, b, c = await claim(store)
    await succeed(store, a)
    await retry(store, b, delay_ms=60_000)
    await bury(store, c)
    await store.link.command("XGROUP", "DESTROY", store.lane_keys[DEFAULT], GROUP)
    assert await claim(store) == []


async def test_trap_09_deleting_a_consumer_that_holds_something(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    assert await store.retire("w1") == 1
    await outlive_lease(store, job)
    assert await reclaim(store) == (1, 0)
    assert await store.retire("w1") == 0


async def test_trap_10_deleting_live_entries(store: Store) -> None:
    for name in scripts.NAMES:
        assert "XTRIM" not in scripts.load(name).source
        assert "MAXLEN" not in scripts.load(name).source
    await push(store, "running", "queued")
    (job,) = await claim(store, 1)
    assert await cancel(store, "running") == "running"
    assert await cancel(store, "queued") == "cancelled"
    assert await store.empty(DEFAULT) == 0
    assert await succeed(store, job) == []


async def test_trap_11_a_sweep_that_always_begins_at_the_start(store: Store) -> None:
    """With a count of 2 a call looks at 20 entries: the lost lease is behind them."""
    await push(store, *(f"j{n:02}" for n in range(60)))
    jobs = await claim(store, 60)
    await outlive_lease(store, jobs[-1])
    assert await reclaim(store, count=2) == (1, 0)


async def test_trap_12_a_lifetime_on_what_must_last(store: Store) -> None:
    await push(store, "queued")
    await push_special(store, "scheduled", delay_ms=60_000)
    await push(store, "dead", lane=HIGH)
    await bury(store, *await claim(store, lanes=[HIGH]))
    for key in [store.keys.index, store.keys.scheduled, store.keys.parked, store.keys.dead, *store.lane_keys[:2]]:
        assert await store.link.command("TTL", key) == -1
    await push_special(store, "only", unique="k", unique_ms=60_000)
    assert 0 < await store.link.command("TTL", store.keys.unique("k")) <= 60


async def test_trap_13_an_error_after_the_first_write(launch: Launch) -> None:
    """Without the right to ask the time, every script that needs it fails before it writes."""
    server = launch()
    async with open_store(server.url, "q") as store:
        await push(store, "a", "b")
        await push_special(store, "later", delay_ms=0)
        (job,) = await claim(store, 1)
        await store.link.command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-time")
        async with open_store(server.url, "q", username="app", password="pw") as app:
            before = await snapshot(store)
            for act in (push(app, "x"), claim(app), succeed(app, job), retry(app, job), bury(app, job)):
                with pytest.raises(ServerRefused):
                    await act
            with pytest.raises(ServerRefused):
                await app.promote(DEFAULT)
            assert await snapshot(store) == before


async def test_trap_14_no_memory_left(launch: Launch) -> None:
    """Pushes fail whole; what frees memory or ends jobs goes on."""
    server = launch()
    async with open_store(server.url, "q") as store:
        await push(store, *(f"j{n}" for n in range(9)))
        await push_special(store, "later", delay_ms=60_000)
        await store.link.command("ZADD", store.keys.scheduled, 1, "later")
        await store.make_groups()
        jobs = await claim(store, 7)
        await bury(store, jobs[6])
        ((letter, _),) = await letters(store)
        await outlive_lease(store, jobs[3])
        await store.link.command("CONFIG", "SET", "maxmemory", 1)
        before = await snapshot(store)
        with pytest.raises(ServerRefused, match="out of memory"):
            await push(store, "x")
        with pytest.raises(ServerRefused, match="out of memory"):
            await store.promote(DEFAULT)
        assert await snapshot(store) == before
        assert len(await claim(store, 1)) == 1
        assert await succeed(store, jobs[0]) == []
        assert await retry(store, jobs[1], delay_ms=60_000) == []
        assert await bury(store, jobs[2]) == []
        assert await reclaim(store) == (1, 0)
        assert await store.release(DEFAULT, [jobs[4].entry]) == 1
        assert await store.renew(DEFAULT, "w1", [jobs[5].entry]) == [jobs[5].entry]
        assert await cancel(store, "j8") == "cancelled"
        assert await store.revive([(letter, jobs[6].id, b"job", DEFAULT)], 0) == 1
        assert await store.link.command("GET", store.keys.result("j0")) == b"done"
        assert await amiss(store) == []


async def test_trap_15_errors_that_end_a_workers_loop(store: Store) -> None:
    """A lane that vanished or is of another type is healed or told, and the other lanes go on."""
    await push(store, "a")
    held = await claim(store)
    await store.link.command("DEL", store.lane_keys[DEFAULT], store.keys.index)
    assert await claim(store) == []
    assert await store.renew(DEFAULT, "w1", [held[0].entry]) == []
    assert await succeed(store, *held) == [held[0].entry]
    assert await reclaim(store) == (0, 0)
    await store.link.command("SET", store.lane_keys[HIGH], "not a stream")
    await push(store, "b")
    claimed = await store.claim("w1", 10, ALL, [0, 0, 0])
    assert "WRONGTYPE" in claimed.problem
    assert [job.id for job in deliveries(list(ALL), claimed.rows)] == ["b"]
    await store.link.command("DEL", store.lane_keys[HIGH])


async def test_trap_16_the_servers_count_of_deliveries_as_attempts(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    for _ in range(20):
        await store.link.command("XCLAIM", store.lane_keys[DEFAULT], GROUP, "w1", 0, job.entry)
    for _ in range(20):
        await store.release(DEFAULT, [job.entry])
        (job,) = await claim(store)
    await outlive_lease(store, job)
    assert await reclaim(store, max_crashes=2) == (1, 0)
    assert [job.crashes for job in await claim(store)] == [1]


async def test_trap_17_entry_ids_that_were_guessed(store: Store) -> None:
    """A script's XADDs may fall into several milliseconds: what the index says is what was returned."""
    ids = [f"j{n}" for n in range(500)]
    await push(store, *ids)
    where = await index(store)
    jobs = await claim(store, 500)
    assert {job.id: f"default {job.entry.decode()}" for job in jobs} == where


async def test_trap_18_waiting_for_replicas_on_another_connection(store: Store) -> None:
    """We promise no more than the server's own durability, so nothing of ours asks for WAIT."""
    for name in scripts.NAMES:
        assert "WAIT" not in scripts.load(name).source.partition("]]\n")[2]
    for module in (connect, inspect.getmodule(Link), inspect.getmodule(Producer), inspect.getmodule(Store)):
        assert module is not None
        assert '"WAIT' not in inspect.getsource(module)


def test_trap_19_two_embedded_servers_in_one_directory(tmp_path: Path) -> None:
    """The rest of the row (no orphan, Ctrl-C, its data on disk) is in test_embedded.py."""
    with keeper.held(tmp_path / "lock", 0), open(tmp_path / "lock") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_trap_20_a_cancellation_that_is_swallowed(store: Store) -> None:
    """A blocked wait ends when it is cancelled, each time, and its connection is not used for another's reply."""
    assert connect.client("redis://host").connection_pool.connection_kwargs["socket_timeout"] is None
    for _ in range(20):
        waiting = asyncio.create_task(store.link.wait_for("BLPOP", store.bell_keys[DEFAULT], wait_s=30))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
    assert await store.link.command("PING") in (b"PONG", "PONG")


async def test_trap_21_a_consumer_name_that_was_used_before(store: Store) -> None:
    """A worker that died and one that has its name must not share a list of deliveries."""
    queue = Queue(store.queue, lanes=store.lanes)
    settings = WorkerSettings(name="same")
    first, second = (Worker(queue, settings=settings) for _ in range(2))
    assert first.name == second.name
    assert first.consumer != second.consumer
    assert first.consumer.startswith("same:")

"""promote: due jobs go to their lanes, once, by the server's clock."""

from __future__ import annotations

import pytest

from asyncq.errors import ServerRefused
from asyncq.store import BATCH, Store
from tests.jobs import (
    DEFAULT,
    HIGH,
    LOW,
    cancel,
    claim,
    index,
    open_store,
    push_special,
    rung,
    silence,
    snapshot,
    succeed,
)
from tests.servers import TestServer


async def make_due(store: Store, *ids: str) -> None:
    """Let these scheduled jobs be due, in this order."""
    for score, job_id in enumerate(ids):
        await store.link.command("ZADD", store.keys.scheduled, "XX", score, job_id)


async def test_nothing_scheduled(store: Store) -> None:
    assert await store.promote(DEFAULT) == (0, -1)


async def test_only_due_jobs_move_each_to_its_own_lane_in_order_of_time(store: Store) -> None:
    await push_special(store, "low", lane=LOW, delay_ms=60_000)
    await push_special(store, "d2", "d1", "later", delay_ms=60_000, job=b"x\n\x00 1 y")
    await make_due(store, "d1", "low", "d2")
    await silence(store)
    moved, due_in_ms = await store.promote(HIGH)
    assert moved == 3
    assert 50_000 < due_in_ms <= 60_000
    assert await rung(store) == 2, "one for each lane"
    jobs = await claim(store)
    assert [(job.id, job.lane, job.job) for job in jobs] == [
        ("d1", DEFAULT, b"x\n\x00 1 y"),
        ("d2", DEFAULT, b"x\n\x00 1 y"),
        ("low", LOW, b"job"),
    ]
    assert await index(store) == {
        **{job.id: f"{store.lanes[job.lane]} {job.entry.decode()}" for job in jobs},
        "later": "scheduled",
    }


async def test_several_callers_move_each_job_once(store: Store) -> None:
    await push_special(store, "a", "b", "c", delay_ms=60_000)
    await make_due(store, "a", "b", "c")
    assert [(await store.promote(DEFAULT, 2))[0] for _ in range(3)] == [2, 1, 0]
    assert [job.id for job in await claim(store)] == ["a", "b", "c"]


async def test_says_at_once_when_more_are_due(store: Store) -> None:
    await push_special(store, "a", "b", delay_ms=60_000)
    await make_due(store, "a", "b")
    assert await store.promote(DEFAULT, 1) == (1, 0)
    assert await store.promote(DEFAULT, 1) == (1, -1)


async def test_a_batch_of_the_largest_size_keeps_its_order(store: Store) -> None:
    ids = [f"j{n:03}" for n in range(BATCH)]
    await push_special(store, *ids, delay_ms=1)
    moved = 0
    while moved < BATCH:
        moved += (await store.promote(DEFAULT))[0]
    assert [job.id for job in await claim(store, BATCH)] == ids


async def test_nothing_due_rings_no_bell(store: Store) -> None:
    await push_special(store, "a", delay_ms=60_000)
    await silence(store)
    assert (await store.promote(DEFAULT))[0] == 0
    assert await rung(store) == 0


async def test_a_lane_that_was_abolished_is_replaced_by_the_default(server: TestServer, name: str) -> None:
    async with open_store(server.url, name, ("old", "default")) as before:
        await push_special(before, "a", lane=0, delay_ms=60_000)
        await make_due(before, "a")
    async with open_store(server.url, name, ("default", "new")) as after:
        assert (await after.promote(0))[0] == 1
        (job,) = await claim(after, lanes=[0, 1])
        assert (job.id, job.lane) == ("a", 0)
        assert await index(after) == {"a": f"default {job.entry.decode()}"}
        assert await succeed(after, job) == []


async def test_what_lost_its_bytes_is_forgotten_and_does_not_stop_the_rest(store: Store) -> None:
    await push_special(store, "a", "b", "c", delay_ms=60_000)
    await make_due(store, "a", "b", "c")
    await store.link.command("HDEL", store.keys.parked, "b")
    assert await store.promote(DEFAULT) == (3, -1)
    assert [job.id for job in await claim(store)] == ["a", "c"]
    assert sorted(await index(store)) == ["a", "c"]


@pytest.mark.parametrize("bytes_of_others", ["", "default", "default 0", "default x job", "\n\n\n"])
async def test_what_cannot_be_read_goes_to_a_worker_to_be_buried(store: Store, bytes_of_others: str) -> None:
    await push_special(store, "a", "b", "c", delay_ms=60_000)
    await make_due(store, "a", "b", "c")
    await store.link.command("HSET", store.keys.parked, "b", bytes_of_others)
    assert await store.promote(DEFAULT) == (3, -1)
    assert [(job.id, job.job) for job in await claim(store)] == [
        ("a", b"job"),
        ("b", bytes_of_others.encode()),
        ("c", b"job"),
    ]


@pytest.mark.parametrize("kind", ["scheduled", "parked", "index", "bell", "lane", "other lane"])
async def test_a_key_of_another_type_is_refused_before_anything_is_written(store: Store, kind: str) -> None:
    await push_special(store, "a", "b", delay_ms=60_000)
    await push_special(store, "c", lane=LOW, delay_ms=60_000)
    await make_due(store, "a", "b", "c")
    own = {"lane": store.lane_keys[DEFAULT], "other lane": store.lane_keys[LOW], "bell": store.bell_keys[DEFAULT]}
    key = own.get(kind) or getattr(store.keys, kind)
    kept = await store.link.command("DUMP", key)
    await store.link.command("DEL", key)
    await store.link.command("SET", key, "x")
    before = await snapshot(store)
    with pytest.raises(ServerRefused, match="choose another queue name"):
        await store.promote(DEFAULT)
    assert await snapshot(store) == before
    await store.link.command("DEL", key)
    if kept is not None:
        await store.link.command("RESTORE", key, 0, kept)
    assert await store.promote(DEFAULT) == (3, -1)
    assert await cancel(store, "a") == "cancelled"

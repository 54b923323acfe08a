"""retire: a worker that is gone is forgotten, but never together with what it holds."""

from __future__ import annotations

import pytest

from asyncq.errors import ServerRefused
from asyncq.keys import GROUP
from asyncq.store import Store
from tests.jobs import DEFAULT, HIGH, LOW, claim, outlive_lease, pairs, push, reclaim, snapshot, succeed


async def consumers(store: Store, lane: int) -> list[bytes]:
    found = await store.link.command("XINFO", "CONSUMERS", store.lane_keys[lane], GROUP)
    return sorted(pairs(consumer)[b"name"] for consumer in found)


async def registered(store: Store) -> list[bytes]:
    names: list[bytes] = await store.link.command("HKEYS", store.keys.workers)
    return sorted(names)


async def test_a_worker_that_holds_nothing_is_forgotten_everywhere(store: Store) -> None:
    await store.enter("w1", b"about")
    await store.enter("w2", b"about")
    await push(store, "h", lane=HIGH)
    await push(store, "l", lane=LOW)
    await succeed(store, *await claim(store, consumer="w1"))
    assert await store.retire("w1") == 0
    assert await registered(store) == [b"w2"]
    assert b"w1" not in await consumers(store, HIGH) + await consumers(store, LOW)


async def test_a_worker_that_holds_deliveries_stays_until_they_are_reclaimed(store: Store) -> None:
    await store.enter("w1", b"about")
    await push(store, "a", "b")
    await push(store, "h", lane=HIGH)
    held = await claim(store, consumer="w1")
    await succeed(store, held[0])
    assert await store.retire("w1") == 1
    assert await registered(store) == [b"w1"]
    assert await consumers(store, DEFAULT) == [b"w1"]
    await outlive_lease(store, *held[1:])
    assert await reclaim(store) == (2, 0)
    assert await store.retire("w1") == 0
    assert await registered(store) == []
    assert await consumers(store, DEFAULT) == [b"reaper"]
    assert sorted(job.id for job in await claim(store, consumer="w2")) == ["a", "b"]


async def test_an_unknown_worker_and_lanes_without_groups_are_no_trouble(store: Store) -> None:
    assert await store.retire("nobody") == 0


async def test_the_deliveries_of_others_do_not_keep_it(store: Store) -> None:
    await push(store, "a")
    await claim(store, consumer="w2")
    assert await store.retire("w1") == 0
    assert await store.held("w2") != []


async def test_what_a_worker_holds_is_told_by_lane(store: Store) -> None:
    assert await store.held("w1") == []
    await push(store, "a", "b")
    await push(store, "l", lane=LOW)
    a, b, low = await claim(store, consumer="w1")
    assert await store.held("w1") == [(DEFAULT, [a.entry, b.entry]), (LOW, [low.entry])]
    assert await store.held("w2") == []


async def test_a_registry_of_another_type_is_an_error(store: Store) -> None:
    await store.link.command("SET", store.keys.workers, "x")
    before = await snapshot(store)
    with pytest.raises(ServerRefused, match="choose another queue name"):
        await store.retire("w1")
    assert await snapshot(store) == before

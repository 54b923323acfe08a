"""empty: what waits goes, what runs stays."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from asyncq.errors import ServerRefused
from asyncq.store import BATCH, Store
from tests.jobs import (
    DEFAULT,
    HIGH,
    LOW,
    cancel,
    claim,
    index,
    outlive_lease,
    push,
    push_special,
    reclaim,
    snapshot,
    succeed,
)


async def test_what_waits_goes_and_what_runs_stays(store: Store) -> None:
    await push(store, "running")
    (running,) = await claim(store)
    await push(store, "queued")
    await push_special(store, "scheduled", delay_ms=60_000)
    assert await store.empty(DEFAULT) == 2
    assert list(await index(store)) == ["running"]
    assert await claim(store) == []
    assert await succeed(store, running) == []


async def test_other_lanes_are_left_alone(store: Store) -> None:
    for lane in (HIGH, LOW):
        await push(store, f"q{lane}", lane=lane)
        await push_special(store, f"s{lane}", lane=lane, delay_ms=60_000)
    assert await store.empty(HIGH) == 2
    assert sorted(await index(store)) == ["q2", "s2"]
    assert await store.empty(DEFAULT) == 0


async def test_a_lane_nobody_has_claimed_from(store: Store) -> None:
    await push(store, "a", "b")
    assert await store.empty(DEFAULT) == 2
    assert await index(store) == {}


async def test_groups_of_others_do_not_mislead_it(store: Store) -> None:
    await push(store, "running")
    (running,) = await claim(store)
    await store.link.command("XGROUP", "CREATE", store.lane_keys[DEFAULT], "a group of others", "0")
    await store.link.command("XGROUP", "CREATE", store.lane_keys[DEFAULT], "zzz", "$")
    await push(store, "queued")
    assert await store.empty(DEFAULT) == 1
    assert await succeed(store, running) == []


async def test_foreign_entries_go_too(store: Store) -> None:
    await store.link.command("XADD", store.lane_keys[DEFAULT], "*", "hello", "world")
    assert await store.empty(DEFAULT) == 1


async def test_more_than_a_call_takes(store: Store) -> None:
    for n in range(3):
        await push(store, *(f"q{n}.{m}" for m in range(BATCH)))
        await push_special(store, *(f"s{n}.{m}" for m in range(BATCH)), delay_ms=60_000)
        await push_special(store, *(f"k{n}.{m}" for m in range(BATCH)), lane=LOW, delay_ms=60_000)
    assert await store.empty(DEFAULT) == 6 * BATCH
    assert len(await index(store)) == 3 * BATCH


async def test_a_wish_to_cancel_goes_with_its_job(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    assert await cancel(store, "a") == "running"
    await outlive_lease(store, job)
    await reclaim(store)
    await store.report([(b"a", b"half")])
    assert await store.empty(DEFAULT) == 1
    for key in (store.keys.cancelled, store.keys.progress, store.keys.index):
        assert await store.link.command("EXISTS", key) == 0


async def test_who_awaits_one_of_them_is_told(store: Store, redis: Redis) -> None:
    await push(store, "a")
    await store.watch(["a"])
    async with redis.pubsub() as ears:
        await ears.subscribe(store.keys.ended + "a")
        assert (await ears.get_message(timeout=5))["type"] == "subscribe"
        await store.empty(DEFAULT)
        assert (await ears.get_message(timeout=5))["data"] == b""
    assert await store.watch(["a"]) == [False]


@pytest.mark.parametrize("kind", ["lane", "index", "parked", "scheduled", "waiters", "progress", "cancelled"])
async def test_a_key_of_another_type_is_refused_before_anything_is_written(store: Store, kind: str) -> None:
    await push(store, "a")
    key = store.lane_keys[DEFAULT] if kind == "lane" else getattr(store.keys, kind)
    kept = await store.link.command("DUMP", key)
    await store.link.command("DEL", key)
    await store.link.command("LPUSH", key, "x")
    before = await snapshot(store)
    with pytest.raises(ServerRefused, match="choose another queue name"):
        await store.empty(DEFAULT)
    assert await snapshot(store) == before
    await store.link.command("DEL", key)
    if kept is not None:
        await store.link.command("RESTORE", key, 0, kept)
    assert await store.empty(DEFAULT) == 1

"""watch: whoever awaits a live job will be told; nobody is kept waiting for one that has ended."""

from __future__ import annotations

import pytest

from asyncq.errors import ServerRefused
from asyncq.store import BATCH, Store
from tests.jobs import (
    DEFAULT,
    bury,
    claim,
    keys_of,
    outlive_lease,
    push,
    push_special,
    reclaim,
    retry,
    snapshot,
    succeed,
)


async def test_live_jobs_are_watched_whatever_their_state(store: Store) -> None:
    await push_special(store, "scheduled", delay_ms=60_000)
    await push(store, "running")
    (running,) = await claim(store)
    await push(store, "queued")
    assert await store.watch(["scheduled", "queued", "running"]) == [True, True, True]
    waiting = await store.link.command("SMEMBERS", store.keys.waiters)
    assert sorted(waiting) == [b"queued", b"running", b"scheduled"]
    assert await store.empty(DEFAULT) == 2
    await succeed(store, running)


async def test_what_has_ended_or_is_unknown_is_not_watched(store: Store) -> None:
    await push(store, "ended", "dead")
    ended, dead = await claim(store)
    await succeed(store, ended)
    await bury(store, dead)
    before = await snapshot(store)
    assert await store.watch(["ended", "dead", "unknown", ""]) == [False] * 4
    assert await snapshot(store) == before


async def test_waiting_goes_on_through_crash_and_retry_and_stops_with_the_end(store: Store) -> None:
    await push(store, "a")
    assert await store.watch(["a"]) == [True]
    await outlive_lease(store, *await claim(store))
    await reclaim(store)
    await retry(store, *await claim(store))
    await store.promote(DEFAULT)
    assert await store.link.command("SMEMBERS", store.keys.waiters) == [b"a"]
    await succeed(store, *await claim(store))
    assert store.keys.waiters.encode() not in await keys_of(store)


async def test_a_batch_of_the_largest_size(store: Store) -> None:
    ids = [f"j{n}" for n in range(BATCH)]
    await push(store, *ids)
    assert await store.watch([*ids[1:], "unknown"]) == [True] * (BATCH - 1) + [False]
    await store.empty(DEFAULT)


async def test_a_key_of_another_type_is_refused(store: Store) -> None:
    await push(store, "a")
    await store.link.command("SET", store.keys.waiters, "x")
    before = await snapshot(store)
    with pytest.raises(ServerRefused, match="choose another queue name"):
        await store.watch(["a"])
    assert await snapshot(store) == before
    await store.link.command("DEL", store.keys.waiters)

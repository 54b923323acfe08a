"""revive: a dead letter gets another life, once."""

from __future__ import annotations

import pytest

from asyncq.clock import now_ms
from asyncq.errors import ServerRefused
from asyncq.store import BATCH, Store
from tests.jobs import (
    DEFAULT,
    HIGH,
    LOW,
    bury,
    claim,
    index,
    letters,
    outlive_lease,
    push,
    push_special,
    reclaim,
    rung,
    silence,
    snapshot,
    stats,
    succeed,
)


async def kill(store: Store, *ids: str, lane: int = DEFAULT) -> list[bytes]:
    """Dead letters of jobs with these ids; returns their entries."""
    await push(store, *ids, lane=lane)
    jobs = [job for job in await claim(store, BATCH) if job.id in ids]
    await bury(store, *jobs)
    return [entry for entry, letter in await letters(store) if letter["id"].decode() in ids]


async def test_a_dead_letter_runs_again_from_the_start(store: Store) -> None:
    (entry,) = await kill(store, "a", lane=LOW)
    await silence(store)
    assert await store.revive([(entry, "a", b"\x00reset\n", LOW)], now_ms()) == 1
    assert await rung(store) == 1
    assert await letters(store) == []
    (job,) = await claim(store)
    assert (job.id, job.job, job.lane, job.crashes) == ("a", b"\x00reset\n", LOW, 0)
    assert (await stats(store))["revived"] == 1
    assert await succeed(store, job) == []


async def test_crashes_start_again_at_zero(store: Store) -> None:
    await push(store, "a")
    await outlive_lease(store, *await claim(store))
    await reclaim(store, max_crashes=1)
    ((entry, _),) = await letters(store)
    await store.revive([(entry, "a", b"job", DEFAULT)], now_ms())
    assert [job.crashes for job in await claim(store)] == [0]


async def test_twice_revives_once(store: Store) -> None:
    (entry,) = await kill(store, "a")
    assert await store.revive([(entry, "a", b"job", DEFAULT)] * 2, now_ms()) == 1
    assert await store.revive([(entry, "a", b"job", DEFAULT)], now_ms()) == 0
    assert len(await claim(store)) == 1


async def test_a_purged_letter_stays_purged(store: Store) -> None:
    (entry,) = await kill(store, "a")
    assert await store.purge([(entry, "a")]) == 1
    before = await snapshot(store)
    assert await store.revive([(entry, "a", b"job", DEFAULT)], now_ms()) == 0
    assert await snapshot(store) == before


async def test_a_letter_may_go_to_another_lane(store: Store) -> None:
    (entry,) = await kill(store, "a", lane=LOW)
    await store.revive([(entry, "a", b"job", HIGH)], now_ms())
    assert [job.lane for job in await claim(store)] == [HIGH]


async def test_a_batch_of_the_largest_size_keeps_its_order(store: Store) -> None:
    ids = [f"j{n:03}" for n in range(BATCH)]
    entries = await kill(store, *ids)
    found = [(entry, job_id, b"job", DEFAULT) for entry, job_id in zip(entries, ids, strict=True)]
    assert await store.revive(found, now_ms()) == BATCH
    assert [job.id for job in await claim(store, BATCH)] == ids


async def test_a_foreign_letter_gets_no_place_in_the_index(store: Store) -> None:
    await store.link.command("XADD", store.lane_keys[DEFAULT], "*", "hello", "world")
    await bury(store, *await claim(store))
    ((entry, _),) = await letters(store)
    assert await store.revive([(entry, "", b"hello world", DEFAULT)], now_ms()) == 1
    assert await index(store) == {}
    assert [(job.id, job.job) for job in await claim(store)] == [("", b"hello world")]


async def test_nothing_to_revive_is_nothing(store: Store) -> None:
    assert await store.revive([], now_ms()) == 0
    assert await rung(store) == 0


async def test_a_lane_that_is_not_there_loses_no_letter(store: Store) -> None:
    entries = await kill(store, "a", "b")
    before = await snapshot(store)
    with pytest.raises(ServerRefused, match="no lane number"):
        await store.revive([(entries[0], "a", b"job", DEFAULT), (entries[1], "b", b"job", 7)], now_ms())
    assert await snapshot(store) == before


async def test_a_revived_id_is_taken(store: Store) -> None:
    (entry,) = await kill(store, "a")
    await store.revive([(entry, "a", b"job", DEFAULT)], now_ms())
    assert await push_special(store, "a", chosen=True) == {0: "a"}


@pytest.mark.parametrize("kind", ["dead", "index", "bell", "stats", "lane"])
async def test_a_key_of_another_type_is_refused_before_anything_is_written(store: Store, kind: str) -> None:
    (entry,) = await kill(store, "a")
    now = now_ms()
    own = {"stats": store.keys.stats(now), "lane": store.lane_keys[HIGH], "bell": store.bell_keys[HIGH]}
    key = own.get(kind) or getattr(store.keys, kind)
    kept = await store.link.command("DUMP", key)
    await store.link.command("DEL", key)
    await store.link.command("SET", key, "x")
    before = await snapshot(store)
    with pytest.raises(ServerRefused, match="choose another queue name"):
        await store.revive([(entry, "a", b"job", DEFAULT)], now)
    assert await snapshot(store) == before
    await store.link.command("DEL", key)
    if kept is not None:
        await store.link.command("RESTORE", key, 60_000 if kind == "stats" else 0, kept)
    assert await store.revive([(entry, "a", b"job", DEFAULT)], now) == 1

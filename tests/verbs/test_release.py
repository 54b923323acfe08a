"""release: a worker that stops hands back what it will not run; that costs neither attempt nor crash."""

from __future__ import annotations

import pytest

from asyncq.errors import ServerRefused
from asyncq.store import BATCH, Store
from tests.jobs import (
    DEFAULT,
    claim,
    index,
    letters,
    outlive_lease,
    push,
    reclaim,
    rung,
    silence,
    snapshot,
    succeed,
)


async def test_a_released_job_is_there_at_once_and_unchanged(store: Store) -> None:
    await push(store, "a", job=b"\x00bytes\n")
    (held,) = await claim(store)
    await silence(store)
    assert await store.release(DEFAULT, [held.entry]) == 1
    assert await rung(store) == 1
    (job,) = await claim(store, consumer="w2")
    assert (job.id, job.job, job.crashes) == ("a", b"\x00bytes\n", 0)
    assert job.entry != held.entry
    assert await index(store) == {"a": f"default {job.entry.decode()}"}


async def test_whoever_released_a_job_holds_it_no_more(store: Store) -> None:
    await push(store, "a")
    (held,) = await claim(store)
    await store.release(DEFAULT, [held.entry])
    assert await store.renew(DEFAULT, "w1", [held.entry]) == []
    before = await snapshot(store)
    assert await succeed(store, held) == [held.entry]
    assert await store.release(DEFAULT, [held.entry]) == 0
    assert await snapshot(store) == before


async def test_crashes_counted_before_stay(store: Store) -> None:
    await push(store, "a")
    await outlive_lease(store, *await claim(store))
    await reclaim(store)
    (job,) = await claim(store)
    await store.release(DEFAULT, [job.entry])
    assert [job.crashes for job in await claim(store)] == [1]


async def test_what_was_taken_back_is_not_released(store: Store) -> None:
    await push(store, "a", "b")
    a, b = await claim(store)
    await outlive_lease(store, a)
    await reclaim(store)
    assert await store.release(DEFAULT, [a.entry, b.entry, b"1-1"]) == 1
    assert sorted(job.id for job in await claim(store)) == ["a", "b"]


async def test_jobs_keep_their_order_among_themselves(store: Store) -> None:
    ids = [f"j{n:04}" for n in range(2 * BATCH + 1)]
    for first in range(0, len(ids), BATCH):
        await push(store, *ids[first : first + BATCH])
    held = [job.entry for _ in range(3) for job in await claim(store, BATCH)]
    assert await store.release(DEFAULT, held) == len(ids)
    assert [job.id for _ in range(3) for job in await claim(store, BATCH)] == ids


async def test_nothing_to_release_is_nothing(store: Store) -> None:
    assert await store.release(DEFAULT, []) == 0


@pytest.mark.parametrize("fields", [["hello", "world"], ["id", "x"], ["k" * 9] * 20_000], ids=["", "half", "long"])
async def test_a_foreign_entry_is_handed_on_to_whoever_buries_it(store: Store, fields: list[str]) -> None:
    await store.link.command("XADD", store.lane_keys[DEFAULT], "*", *fields)
    (held,) = await claim(store)
    assert await store.release(DEFAULT, [held.entry]) == 1
    assert await index(store) == {}
    (job,) = await claim(store)
    assert (job.id, job.job) == ("", held.job)
    await outlive_lease(store, job)
    assert await reclaim(store) == (0, 1)
    assert [letter["reason"] for _, letter in await letters(store)] == [b"undecodable"]


async def test_a_lane_that_is_gone_has_nothing_to_release(store: Store) -> None:
    assert await store.release(DEFAULT, [b"1-1"]) == 0


@pytest.mark.parametrize("kind", ["lane", "index", "bell"])
async def test_a_key_of_another_type_is_refused_before_anything_is_written(store: Store, kind: str) -> None:
    await push(store, "a")
    (held,) = await claim(store)
    own = {"lane": store.lane_keys[DEFAULT], "bell": store.bell_keys[DEFAULT]}
    key = own.get(kind) or getattr(store.keys, kind)
    kept = await store.link.command("DUMP", key)
    await store.link.command("DEL", key)
    await store.link.command("SET", key, "x")
    before = await snapshot(store)
    with pytest.raises(ServerRefused, match="choose another queue name"):
        await store.release(DEFAULT, [held.entry])
    assert await snapshot(store) == before
    await store.link.command("DEL", key)
    if kept is not None:
        await store.link.command("RESTORE", key, 0, kept)
    assert await store.release(DEFAULT, [held.entry]) == 1

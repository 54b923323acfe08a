"""renew: keeps what is ours, and cannot take back what is not."""

from __future__ import annotations

import pytest

from asyncq.errors import ServerRefused
from asyncq.keys import GROUP
from asyncq.store import BATCH, Store
from tests.jobs import DEFAULT, cancel, claim, outlive_lease, push, reclaim, snapshot, succeed


async def idle_ms(store: Store) -> list[int]:
    rows = await store.link.command("XPENDING", store.lane_keys[DEFAULT], GROUP, "-", "+", 1000)
    return [row[2] for row in rows]


async def test_a_renewed_lease_begins_anew(store: Store) -> None:
    await push(store, "a", "b")
    jobs = await claim(store)
    await outlive_lease(store, *jobs)
    assert min(await idle_ms(store)) >= 60_000
    assert await store.renew(DEFAULT, "w1", [job.entry for job in jobs]) == [job.entry for job in jobs]
    assert max(await idle_ms(store)) < 30_000
    assert await reclaim(store) == (0, 0)


async def test_a_lease_that_was_lost_is_not_taken_back(store: Store) -> None:
    await push(store, "a", "b")
    lost, kept = await claim(store)
    await outlive_lease(store, lost)
    assert await reclaim(store) == (1, 0)
    assert await store.renew(DEFAULT, "w1", [lost.entry, kept.entry]) == [kept.entry]
    (again,) = await claim(store, consumer="w2")
    assert (again.id, again.crashes) == ("a", 1)
    assert await store.renew(DEFAULT, "w1", [lost.entry]) == []
    assert await succeed(store, again) == []


async def test_what_has_ended_is_not_renewed(store: Store) -> None:
    await push(store, "a", "b")
    first, second = await claim(store)
    await succeed(store, first)
    await store.release(DEFAULT, [second.entry])
    assert await store.renew(DEFAULT, "w1", [first.entry, second.entry]) == []


async def test_an_entry_nobody_claimed_is_not_taken(store: Store) -> None:
    await push(store, "a")
    await store.make_groups()
    (entry,) = [row[0] for row in await store.link.command("XRANGE", store.lane_keys[DEFAULT], "-", "+")]
    assert await store.renew(DEFAULT, "w1", [entry]) == []
    assert [job.id for job in await claim(store)] == ["a"]


async def test_a_lane_that_is_gone_holds_nothing_of_ours(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    await store.link.command("DEL", store.lane_keys[DEFAULT], store.keys.index)
    assert await store.renew(DEFAULT, "w1", [job.entry]) == []


async def test_nothing_to_renew_is_nothing(store: Store) -> None:
    await push(store, "a")
    await claim(store)
    assert await store.renew(DEFAULT, "w1", []) == []


async def test_a_batch_of_the_largest_size(store: Store) -> None:
    await push(store, *(str(n) for n in range(BATCH)))
    entries = [job.entry for job in await claim(store, BATCH)]
    assert await store.renew(DEFAULT, "w1", entries) == entries


async def test_an_error_is_told_and_changes_nothing(store: Store) -> None:
    await store.link.command("SET", store.lane_keys[DEFAULT], "x")
    before = await snapshot(store)
    with pytest.raises(ServerRefused, match="WRONGTYPE"):
        await store.renew(DEFAULT, "w1", [b"1-1"])
    assert await snapshot(store) == before
    await store.link.command("DEL", store.lane_keys[DEFAULT])


async def test_renewal_does_not_count_as_a_crash(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    for _ in range(5):
        await store.renew(DEFAULT, "w1", [job.entry])
    await outlive_lease(store, job)
    assert await reclaim(store, max_crashes=2) == (1, 0)
    assert await cancel(store, "a") == "cancelled"

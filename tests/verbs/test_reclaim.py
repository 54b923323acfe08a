"""reclaim: lost jobs come back under a new entry id, poisonous ones are buried."""

from __future__ import annotations

import pytest

from asyncq.clock import now_ms
from asyncq.errors import ServerRefused
from asyncq.keys import GROUP
from asyncq.store import BATCH, Store
from tests.jobs import (
    DEFAULT,
    LEASE_MS,
    cancel,
    claim,
    index,
    letters,
    outlive_lease,
    push,
    reclaim,
    rung,
    silence,
    snapshot,
    stats,
    succeed,
)


async def test_a_live_lease_is_left_alone(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    assert await reclaim(store) == (0, 0)
    assert await succeed(store, job) == []


async def test_a_lost_job_comes_back_under_a_new_entry_with_a_crash_counted(store: Store) -> None:
    await push(store, "a", job=b"\x00bytes\n")
    (lost,) = await claim(store)
    await outlive_lease(store, lost)
    await silence(store)
    assert await reclaim(store) == (1, 0)
    assert await rung(store) == 1
    (job,) = await claim(store, consumer="w2")
    assert job.entry != lost.entry
    assert (job.id, job.job, job.crashes) == ("a", b"\x00bytes\n", 1)
    assert await stats(store) == {"enqueued": 1, "crashed": 1}


async def test_crashes_add_up_until_the_job_is_poison(store: Store) -> None:
    await push(store, "a", job=b"bad")
    for crashes in (0, 1, 2):
        (job,) = await claim(store)
        assert job.crashes == crashes
        if crashes == 2:
            await store.begin_trial(job.lane, "w1", job.entry, b"a")
        await outlive_lease(store, job)
        assert await reclaim(store) == ((1, 0) if crashes < 2 else (0, 1))
    ((entry, letter),) = await letters(store)
    assert (letter["id"], letter["job"], letter["reason"], letter["crashes"]) == (b"a", b"bad", b"poison", b"3")
    assert letter["lane"] == b"default"
    assert await index(store) == {"a": f"dead {entry.decode()}"}
    assert await stats(store) == {"enqueued": 1, "crashed": 3, "dead": 1}


async def test_only_a_job_on_trial_is_buried(store: Store) -> None:
    await push(store, "poison", "innocent")
    for _ in range(2):
        await outlive_lease(store, *await claim(store))
        assert await reclaim(store) == (2, 0)
    jobs = await claim(store)
    poison = next(job for job in jobs if job.id == "poison")
    assert await store.begin_trial(poison.lane, "w1", poison.entry, b"poison")
    await outlive_lease(store, *jobs)
    assert await reclaim(store) == (1, 1)
    ((_, letter),) = await letters(store)
    assert letter["id"] == b"poison"
    assert [(job.id, job.crashes) for job in await claim(store)] == [("innocent", 3)]
    assert await store.link.command("EXISTS", store.keys.trials) == 0


async def test_who_never_comes_to_trial_is_not_tried_for_ever(store: Store) -> None:
    await push(store, "a")
    for _ in range(9):
        await outlive_lease(store, *await claim(store))
        assert await reclaim(store, max_crashes=2) == (1, 0)
    await outlive_lease(store, *await claim(store))
    assert await reclaim(store, max_crashes=2) == (0, 1)


async def test_a_trial_counts_once(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    await store.begin_trial(job.lane, "w1", job.entry, b"a")
    await outlive_lease(store, job)
    assert await reclaim(store) == (1, 0)
    for _ in range(3):
        await outlive_lease(store, *await claim(store))
        assert await reclaim(store) == (1, 0)


async def test_being_delivered_often_is_no_crash(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    for _ in range(10):  # a plain XCLAIM raises the server's own count of deliveries
        await store.link.command("XCLAIM", store.lane_keys[DEFAULT], GROUP, "w1", 0, job.entry)
    await outlive_lease(store, job)
    assert await reclaim(store, max_crashes=2) == (1, 0)
    (again,) = await claim(store)
    assert again.crashes == 1


async def test_poison_takes_along_who_waits_and_what_was_said(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    await store.watch(["a"])
    await store.report([(b"a", b"half")])
    assert await cancel(store, "a") == "running"
    await outlive_lease(store, job)
    assert await reclaim(store, max_crashes=1) == (0, 1)
    for key in (store.keys.waiters, store.keys.progress, store.keys.cancelled):
        assert await store.link.command("EXISTS", key) == 0


async def test_a_wish_to_cancel_outlives_a_crash(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    assert await cancel(store, "a") == "running"
    await outlive_lease(store, job)
    await reclaim(store)
    assert await store.cancel_requests([b"a"]) == [b"a"]
    assert await cancel(store, "a") == "cancelled"


async def test_a_dead_lease_behind_many_live_ones_is_found(store: Store) -> None:
    ids = [f"j{n}" for n in range(400)]
    await push(store, *ids)
    jobs = await claim(store, 400)
    await outlive_lease(store, jobs[-1])
    assert await reclaim(store, count=10) == (1, 0)


async def test_a_call_is_bounded_and_the_cursor_goes_on(store: Store) -> None:
    await push(store, *(f"j{n}" for n in range(25)))
    await outlive_lease(store, *await claim(store, 25))
    cursor, back, _ = await store.reclaim(DEFAULT, "reaper", LEASE_MS, b"0-0", 3, now_ms(), 10)
    assert (back, cursor != b"0-0") == (10, True)
    cursor, back, _ = await store.reclaim(DEFAULT, "reaper", LEASE_MS, cursor, 3, now_ms(), 10)
    assert back == 10
    assert await reclaim(store) == (5, 0)
    assert len(await claim(store, 100)) == 25


async def test_a_batch_of_the_largest_size_keeps_its_order(store: Store) -> None:
    ids = [f"j{n:03}" for n in range(BATCH)]
    await push(store, *ids)
    await outlive_lease(store, *await claim(store, BATCH))
    assert await reclaim(store, count=BATCH) == (BATCH, 0)
    assert [job.id for job in await claim(store, BATCH)] == ids


async def test_two_reclaimers_take_each_job_once(store: Store) -> None:
    await push(store, "a", "b")
    await outlive_lease(store, *await claim(store))
    assert await reclaim(store, consumer="r1") == (2, 0)
    assert await reclaim(store, consumer="r2") == (0, 0)
    assert [job.crashes for job in await claim(store)] == [1, 1]


@pytest.mark.parametrize(
    "fields",
    [["hello", "world"], ["id", "", "job", "x", "crashes", "0"], ["k" * 9] * 20_000],
    ids=["", "no id", "long"],
)
async def test_a_foreign_entry_is_buried_as_undecodable(store: Store, fields: list[str]) -> None:
    await store.link.command("XADD", store.lane_keys[DEFAULT], "*", *fields)
    await outlive_lease(store, *await claim(store))
    assert await reclaim(store) == (0, 1)
    ((_, letter),) = await letters(store)
    assert (letter["id"], letter["reason"], letter["job"]) == (b"", b"undecodable", " ".join(fields).encode())
    assert await index(store) == {}


async def test_an_entry_that_was_deleted_by_hand_is_forgotten(store: Store) -> None:
    await push(store, "a", "b")
    a, b = await claim(store)
    await outlive_lease(store, a, b)
    await store.link.command("XDEL", store.lane_keys[DEFAULT], a.entry)
    await store.link.command("HDEL", store.keys.index, "a")
    assert await reclaim(store) == (1, 0)


async def test_a_lane_without_a_group_has_no_leases(store: Store) -> None:
    assert await reclaim(store) == (0, 0)
    await push(store, "a")
    assert await reclaim(store) == (0, 0)


@pytest.mark.parametrize("kind", ["lane", "index", "dead", "bell", "stats", "waiters", "progress", "cancelled"])
async def test_a_key_of_another_type_is_refused_before_anything_is_written(store: Store, kind: str) -> None:
    await push(store, "a", "b")
    await outlive_lease(store, *await claim(store))
    now = now_ms()
    own = {"stats": store.keys.stats(now), "lane": store.lane_keys[DEFAULT], "bell": store.bell_keys[DEFAULT]}
    key = own.get(kind) or getattr(store.keys, kind)
    kept = await store.link.command("DUMP", key)
    await store.link.command("DEL", key)
    await store.link.command("SET", key, "x")
    before = await snapshot(store)
    with pytest.raises(ServerRefused, match="choose another queue name"):
        await store.reclaim(DEFAULT, "reaper", LEASE_MS, b"0-0", 3, now)
    assert await snapshot(store) == before
    await store.link.command("DEL", key)
    if kept is not None:
        await store.link.command("RESTORE", key, 60_000 if kind == "stats" else 0, kept)
    assert await reclaim(store) == (2, 0)

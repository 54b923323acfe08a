"""enqueue: jobs are where workers will find them, exactly once."""

from __future__ import annotations

import pytest

from asyncq.clock import now_ms
from asyncq.errors import ServerRefused
from asyncq.store import BATCH, Push, Store
from tests.jobs import (
    DEFAULT,
    HIGH,
    LOW,
    bury,
    cancel,
    claim,
    index,
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


async def test_a_pushed_job_is_in_its_lane_in_the_index_and_counted(store: Store) -> None:
    assert await push(store, "a", "b", job=b"\x00\n \xff") == {}
    jobs = await claim(store)
    assert [(job.id, job.job, job.lane, job.crashes) for job in jobs] == [
        ("a", b"\x00\n \xff", DEFAULT, 0),
        ("b", b"\x00\n \xff", DEFAULT, 0),
    ]
    assert await index(store) == {job.id: f"default {job.entry.decode()}" for job in jobs}
    assert await stats(store) == {"enqueued": 2}


async def test_a_repeated_push_changes_nothing(store: Store) -> None:
    await push(store, "a", "b", producer="p", sequence=7)
    before = await snapshot(store)
    assert await push(store, "a", "b", producer="p", sequence=7) == {}
    assert await snapshot(store) == before


async def test_a_push_that_arrives_late_after_the_next_one_changes_nothing(store: Store) -> None:
    await push(store, "a", producer="p", sequence=9)
    before = await snapshot(store)
    assert await push(store, "late", producer="p", sequence=8) == {}
    assert await snapshot(store) == before
    await push(store, "next", producer="p", sequence=10)
    assert [job.id for job in await claim(store)] == ["a", "next"]


async def test_sequence_numbers_are_compared_as_numbers(store: Store) -> None:
    await push(store, "a", producer="p", sequence=9)
    await push(store, "b", producer="p", sequence=10)
    await push(store, "c", producer="p", sequence=100)
    assert [job.id for job in await claim(store)] == ["a", "b", "c"]


async def test_a_repeated_push_returns_what_it_returned(store: Store) -> None:
    await push_special(store, "a", chosen=True)
    refused = {0: "a", 2: "c"}
    await push_special(store, "c", chosen=True)
    assert await push_special(store, "a", "b", "c", chosen=True, producer="p", sequence=3) == refused
    before = await snapshot(store)
    assert await push_special(store, "a", "b", "c", chosen=True, producer="p", sequence=3) == refused
    assert await snapshot(store) == before


async def test_producers_are_told_apart(store: Store) -> None:
    await push(store, "a", producer="p", sequence=1)
    await push(store, "b", producer="q", sequence=1)
    assert len(await claim(store)) == 2


async def test_a_producers_last_push_is_remembered_for_long_and_not_for_ever(store: Store) -> None:
    await push(store, "a", producer="p")
    ttl_s = await store.link.command("TTL", store.keys.producer("p"))
    assert 600 < ttl_s <= 3600


async def test_a_batch_of_the_largest_size_keeps_its_order(store: Store) -> None:
    ids = [f"job{n:04}" for n in range(BATCH)]
    await push(store, *ids)
    assert [job.id for job in await claim(store, BATCH)] == ids


async def test_a_delayed_job_is_scheduled_by_the_servers_clock(store: Store) -> None:
    seconds, _ = await store.link.command("TIME")
    await push_special(store, "a", delay_ms=60_000, job=b"later\x00\n")
    assert await index(store) == {"a": "scheduled"}
    assert await claim(store) == []
    due = int(float(await store.link.command("ZSCORE", store.keys.scheduled, "a")))
    assert 0 <= due - int(seconds) * 1000 - 60_000 < 5_000
    assert await store.link.command("HGET", store.keys.parked, "a") == b"default 0 later\x00\n"


async def test_empty_payloads_are_payloads(store: Store) -> None:
    await push(store, "now", job=b"")
    await push_special(store, "later", job=b"", delay_ms=1)
    while not (await store.promote(DEFAULT))[0]:
        pass
    assert [(job.id, job.job) for job in await claim(store)] == [("now", b""), ("later", b"")]


@pytest.mark.parametrize("job_id", ["a:b", "a@b", "x=1", "job/1", "a+b", "a.b-c", "~", "é" * 20, "%s", "(.*)$"])
async def test_ids_may_have_odd_characters(store: Store, job_id: str) -> None:
    await push_special(store, job_id, chosen=True)
    assert await push_special(store, job_id, chosen=True) == {0: job_id}
    (job,) = await claim(store)
    assert job.id == job_id
    assert await succeed(store, job) == []


# -- one job at a time ----------------------------------------------------------------------------------------


async def test_a_chosen_id_is_taken_while_the_job_is_live_dead_or_its_result_kept(store: Store) -> None:
    async def taken() -> bool:
        return await push_special(store, "mine", chosen=True) == {0: "mine"}

    await push_special(store, "mine", chosen=True, delay_ms=1)
    assert await taken()
    while not (await store.promote(DEFAULT))[0]:
        pass
    assert await taken()
    (job,) = await claim(store)
    assert await taken()
    await bury(store, job)
    assert await taken()
    ((entry, _),) = await store.link.command("XRANGE", store.keys.dead, "-", "+")
    await store.revive([(entry, "mine", b"job", DEFAULT)], now_ms())
    (job,) = await claim(store)
    await succeed(store, job)
    assert await taken()
    await store.link.command("DEL", store.keys.result("mine"))
    assert not await taken()


async def test_a_chosen_id_is_taken_within_its_own_batch(store: Store) -> None:
    assert await push_special(store, "a", "a", "b", chosen=True) == {1: "a"}
    assert [job.id for job in await claim(store)] == ["a", "b"]


async def test_a_uniqueness_key_admits_one_job_at_a_time(store: Store) -> None:
    assert await push_special(store, "a", unique="k") == {}
    assert await push_special(store, "b", unique="k") == {0: "a"}
    assert await push_special(store, "c", unique="other") == {}
    assert sorted(await index(store)) == ["a", "c"]


async def test_a_uniqueness_key_holds_within_one_batch(store: Store) -> None:
    assert await push_special(store, "a", "b", "c", unique="k") == {1: "a", 2: "a"}
    assert [job.id for job in await claim(store)] == ["a"]


async def test_a_uniqueness_key_holds_across_lanes_and_delays_in_one_batch(store: Store) -> None:
    batch = Push(len(store.lanes))
    key = store.keys.unique("k")
    batch.add_special(HIGH, "a", b"", 60_000, "", key, 1000)
    batch.add_special(DEFAULT, "b", b"", 0, "", key, 2000)
    assert await store.enqueue("p", 1, batch, now_ms()) == {1: "a"}


async def test_a_uniqueness_key_expires(store: Store) -> None:
    await push_special(store, "a", unique="k", unique_ms=50_000)
    assert 0 < await store.link.command("PTTL", store.keys.unique("k")) <= 50_000


async def test_a_uniqueness_time_below_a_millisecond_is_one(store: Store) -> None:
    assert await push_special(store, "a", unique="k", unique_ms=0) == {}


@pytest.mark.parametrize("end", ["cancelled", "emptied", "poison", "buried", "lost with its data"])
async def test_a_uniqueness_key_is_free_when_its_job_has_ended_in_any_way(store: Store, end: str) -> None:
    await push_special(store, "a", unique="k")
    match end:
        case "cancelled":
            await cancel(store, "a")
        case "emptied":
            await store.empty(DEFAULT)
        case "poison":
            await outlive_lease(store, *await claim(store))
            await reclaim(store, max_crashes=1)
        case "buried":
            await bury(store, *await claim(store))
        case _:
            await store.link.command("DEL", store.keys.index, *store.lane_keys)
    assert await push_special(store, "b", unique="k") == {}


async def test_a_uniqueness_key_stays_with_a_job_that_runs_again(store: Store) -> None:
    await push_special(store, "a", unique="k")
    await outlive_lease(store, *await claim(store))
    await reclaim(store)
    assert await push_special(store, "b", unique="k") == {0: "a"}


# -- the bell -------------------------------------------------------------------------------------------------


async def test_the_bell_is_rung_once_however_much_comes(store: Store) -> None:
    await push(store, "a", "b")
    await push(store, "c")
    assert await rung(store) == 1


async def test_each_lane_has_a_bell_of_its_own(store: Store) -> None:
    await push(store, "a", lane=LOW)
    await push(store, "b", lane=HIGH)
    assert [await store.link.command("LLEN", bell) for bell in store.bell_keys] == [1, 0, 1]


async def test_the_bell_is_rung_for_a_delayed_job_only_if_it_is_the_next(store: Store) -> None:
    await push_special(store, "a", delay_ms=60_000)
    assert await rung(store) == 1
    await silence(store)
    await push_special(store, "b", delay_ms=90_000)
    assert await rung(store) == 0
    await push_special(store, "c", delay_ms=30_000)
    assert await rung(store) == 1


async def test_the_bell_stays_silent_when_nothing_is_accepted(store: Store) -> None:
    await push_special(store, "a", chosen=True)
    await silence(store)
    await push_special(store, "a", chosen=True)
    assert await rung(store) == 0
    assert await stats(store) == {"enqueued": 1}


# -- nothing half-written -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["producer", "index", "scheduled", "parked", "bell", "stats", "lane", "unique"])
async def test_a_key_of_another_type_is_refused_before_anything_is_written(store: Store, kind: str) -> None:
    now = now_ms()
    key = {
        "producer": store.keys.producer("p"),
        "stats": store.keys.stats(now),
        "lane": store.lane_keys[DEFAULT],
        "bell": store.bell_keys[DEFAULT],
        "unique": store.keys.unique("k"),
    }.get(kind) or getattr(store.keys, kind)
    await store.link.command("SADD", key, "x")
    batch = Push(len(store.lanes))
    batch.add(HIGH, "plain", b"job")
    batch.add_special(HIGH, "later", b"job", 1000, "", "", 0)
    batch.add_special(DEFAULT, "only", b"job", 0, store.keys.result("only"), store.keys.unique("k"), 1000)
    before = await snapshot(store)
    with pytest.raises(ServerRefused, match="choose another queue name"):
        await store.enqueue("p", 1, batch, now)
    assert await snapshot(store) == before
    await store.link.command("DEL", key)
    assert await store.enqueue("p", 1, batch, now) == {}
    assert sorted(await index(store)) == ["later", "only", "plain"]

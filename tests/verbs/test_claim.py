"""claim: by priority, no more than wanted, nothing of what is paused."""

from __future__ import annotations

import asyncio

import pytest

from asyncq.keys import GROUP
from asyncq.store import BATCH, Store
from tests.eventually import eventually
from tests.jobs import (
    ALL,
    DEFAULT,
    HIGH,
    LOW,
    Delivery,
    amiss,
    claim,
    deliveries,
    index,
    open_store,
    push,
    push_special,
    rung,
    silence,
    snapshot,
    succeed,
)
from tests.servers import TestServer


async def take(store: Store, wanted: int, shares: list[int]) -> list[Delivery]:
    claimed = await store.claim("w1", wanted, ALL, shares)
    return deliveries(list(ALL), claimed.rows)


async def test_lanes_come_in_the_order_asked_and_jobs_in_the_order_pushed(store: Store) -> None:
    await push(store, "l1", lane=LOW)
    await push(store, "d1", "d2", lane=DEFAULT)
    await push(store, "h1", lane=HIGH)
    assert [(job.id, job.lane) for job in await claim(store, 3)] == [("h1", HIGH), ("d1", DEFAULT), ("d2", DEFAULT)]
    assert [job.id for job in await claim(store, 3)] == ["l1"]


async def test_no_more_than_wanted_and_nothing_twice(store: Store) -> None:
    await push(store, *(f"j{n}" for n in range(7)))
    assert [len(await claim(store, 3, consumer)) for consumer in ("w1", "w2", "w3", "w4")] == [3, 3, 1, 0]


async def test_lanes_not_asked_for_are_left_alone(store: Store) -> None:
    await push(store, "h", lane=HIGH)
    await push(store, "l", lane=LOW)
    assert [(job.id, job.lane) for job in await claim(store, lanes=[LOW])] == [("l", LOW)]
    assert [(job.id, job.lane) for job in await claim(store, lanes=[DEFAULT, HIGH])] == [("h", HIGH)]


async def test_a_share_comes_before_priority_and_what_it_leaves_goes_by_priority(store: Store) -> None:
    await push(store, *(f"h{n}" for n in range(10)), lane=HIGH)
    await push(store, *(f"l{n}" for n in range(10)), lane=LOW)
    jobs = await take(store, 5, [0, 0, 2])
    assert [job.id for job in jobs] == ["l0", "l1", "h0", "h1", "h2"]


async def test_shares_never_exceed_what_is_wanted(store: Store) -> None:
    for lane in ALL:
        await push(store, *(f"{lane}{n}" for n in range(10)), lane=lane)
    assert len(await take(store, 5, [4, 4, 4])) == 5
    assert len(await take(store, 0, [4, 4, 4])) == 0


async def test_one_call_takes_at_most_a_batch(store: Store) -> None:
    await push(store, *(f"a{n}" for n in range(BATCH)))
    await push(store, "one more")
    assert len(await claim(store, 10 * BATCH)) == BATCH


async def test_says_when_the_next_scheduled_job_is_due(store: Store) -> None:
    assert (await store.claim("w1", 1, ALL, [0, 0, 0])).due_in_ms == -1
    await push_special(store, "a", delay_ms=50_000)
    assert 40_000 < (await store.claim("w1", 1, ALL, [0, 0, 0])).due_in_ms <= 50_000
    await push_special(store, "b", delay_ms=1)
    while (await store.claim("w1", 1, ALL, [0, 0, 0])).due_in_ms:
        pass


async def test_tells_the_servers_time(store: Store) -> None:
    seconds, _ = await store.link.command("TIME")
    claimed = await store.claim("w1", 1, ALL, [0, 0, 0])
    assert 0 <= claimed.now_ms - int(seconds) * 1000 < 5000


# -- pause ----------------------------------------------------------------------------------------------------


async def test_a_paused_queue_gives_nothing_and_its_jobs_wait(store: Store) -> None:
    await push(store, "a")
    await store.pause()
    assert await claim(store) == []
    await store.resume()
    assert [job.id for job in await claim(store)] == ["a"]


async def test_a_paused_lane_gives_nothing_and_the_others_go_on(store: Store) -> None:
    await push(store, "h", lane=HIGH)
    await push(store, "l", lane=LOW)
    await store.pause("high")
    assert [job.id for job in await claim(store)] == ["l"]
    assert await take(store, 5, [5, 0, 0]) == []
    await store.resume("high")
    assert [job.id for job in await claim(store)] == ["h"]


async def test_resume_wakes_a_worker(store: Store) -> None:
    await store.pause()
    await silence(store)
    await store.resume()
    assert await rung(store) >= 1


# -- the bell -------------------------------------------------------------------------------------------------


async def test_a_claim_that_was_filled_wakes_one_other(store: Store) -> None:
    await push(store, "a", "b", "c")
    await silence(store)
    await claim(store, 2)
    assert await rung(store) == 1
    await claim(store, 1)
    assert await rung(store) == 1


async def test_a_claim_wakes_only_workers_of_lanes_where_something_is(store: Store) -> None:
    await push(store, "a", "b")
    await push(store, "h", lane=HIGH)
    await silence(store)
    assert [job.id for job in await claim(store, 2)] == ["h", "a"]
    rung_for = [await store.link.command("LLEN", bell) for bell in store.bell_keys]
    assert rung_for[DEFAULT] == 1
    assert rung_for[LOW] == 0


async def test_a_claim_that_was_not_filled_wakes_nobody(store: Store) -> None:
    await push(store, "a")
    await silence(store)
    await claim(store, 2)
    assert await rung(store) == 0


# -- what is not as it should be ------------------------------------------------------------------------------


async def test_an_idle_claim_of_a_new_queue_makes_the_groups_at_zero(store: Store) -> None:
    await push(store, "before any worker came")
    assert [job.id for job in await claim(store)] == ["before any worker came"]


async def test_a_group_that_was_destroyed_is_made_again_and_skips_nothing(store: Store) -> None:
    await push(store, "a", "b")
    first = await claim(store, 1)
    await store.link.command("XGROUP", "DESTROY", store.lane_keys[DEFAULT], GROUP)
    again = await claim(store)
    assert [job.id for job in again] == ["a", "b"]
    assert await succeed(store, *first) == []
    assert await succeed(store, *again) == [first[0].entry]


async def test_a_lane_of_another_type_is_reported_and_the_others_go_on(store: Store) -> None:
    await store.link.command("SET", store.lane_keys[HIGH], "not a stream")
    await push(store, "l", lane=LOW)
    claimed = await store.claim("w1", 10, ALL, [0, 0, 0])
    assert store.lane_keys[HIGH] in claimed.problem
    assert "WRONGTYPE" in claimed.problem
    assert [job.id for job in deliveries(list(ALL), claimed.rows)] == ["l"]
    await store.link.command("DEL", store.lane_keys[HIGH])


@pytest.mark.parametrize("kind", ["paused", "scheduled"])
async def test_a_key_of_another_type_is_refused_before_anything_is_taken(store: Store, kind: str) -> None:
    await push(store, "a")
    await store.link.command("SET", getattr(store.keys, kind), "x")
    before = await snapshot(store)
    with pytest.raises(Exception, match="WRONGTYPE"):
        await claim(store)
    assert await snapshot(store) == before
    await store.link.command("DEL", getattr(store.keys, kind))


async def test_a_bell_of_another_type_takes_nothing_either(store: Store) -> None:
    """Ringing comes last, so it must not fail after jobs were taken."""
    await push(store, "a")
    await silence(store)
    await store.link.command("SET", store.bell_keys[DEFAULT], "x")
    before = await snapshot(store)
    with pytest.raises(Exception, match="WRONGTYPE"):
        await claim(store, 1)
    assert await snapshot(store) == before
    await silence(store)


@pytest.mark.parametrize(
    "fields",
    [
        ["hello", "world"],
        ["id", "x"],
        ["id", "x", "job", "y"],
        ["id", "x", "job", "y", "crashes", "many"],
        ["id", "x", "job", "y", "crashes", "1e3"],
        ["job", "y", "id", "x", "crashes", "0"],
        ["", ""],
    ],
)
async def test_an_entry_we_did_not_write_comes_without_an_id(store: Store, fields: list[str]) -> None:
    entry = await store.link.command("XADD", store.lane_keys[DEFAULT], "*", *fields)
    (job,) = await claim(store)
    assert (job.entry, job.id, job.job, job.crashes) == (entry, "", " ".join(fields).encode(), 0)
    await store.link.command("DEL", store.lane_keys[DEFAULT])


async def test_a_queue_name_that_looks_like_a_lane_does_not_confuse(server: TestServer, name: str) -> None:
    async with open_store(server.url, f"{name}:lane:x") as store:
        await push(store, "a", lane=HIGH)
        await store.pause("high")
        assert await claim(store) == []
        await store.resume()
        (job,) = await claim(store)
        assert await index(store) == {"a": f"high {job.entry.decode()}"}
        assert await amiss(store) == []


async def test_nothing_is_claimed_for_a_consumer_that_ceases(store: Store) -> None:
    """Not even by a claim that went along with a wait: it is carried out when the bell rings."""
    waiting = asyncio.create_task(store.wait_and_claim("w1", 10, ALL, [0, 0, 0], 20.0))
    await eventually(lambda: bool(store.link._waiting))
    await store.cease("w1")
    await push(store, "a")
    claimed = await waiting
    assert claimed is not None
    assert claimed.rows == []
    assert [job.id for job in await claim(store, consumer="w2")] == ["a"]
    await store.retire("w1")
    assert await store.link.command("EXISTS", store.keys.paused) == 0

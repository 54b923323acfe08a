"""finish: one recorded ending for each delivery, and only by whoever still holds it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from asyncq.clock import now_ms
from asyncq.errors import ServerRefused
from asyncq.keys import GROUP
from asyncq.store import BATCH, Endings, Store
from tests.eventually import eventually
from tests.jobs import (
    ALL,
    DEFAULT,
    HIGH,
    LOW,
    Delivery,
    amiss,
    bury,
    cancel,
    claim,
    index,
    keys_of,
    letters,
    outlive_lease,
    push,
    push_special,
    reclaim,
    retry,
    snapshot,
    stats,
    succeed,
)

End = Callable[..., Awaitable[list[bytes]]]


async def result(store: Store, job_id: str) -> bytes | None:
    found: bytes | None = await store.link.command("GET", store.keys.result(job_id))
    return found


# -- the three endings ----------------------------------------------------------------------------------------


async def test_a_job_that_ended_leaves_its_result_for_a_while_and_nothing_else(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    assert await succeed(store, job, record=b"\x00value\n", ttl_ms=50_000) == []
    assert await result(store, "a") == b"\x00value\n"
    assert 0 < await store.link.command("PTTL", store.keys.result("a")) <= 50_000
    assert await index(store) == {}
    assert await store.link.command("XLEN", store.lane_keys[DEFAULT]) == 0
    assert (await store.link.command("XPENDING", store.lane_keys[DEFAULT], GROUP))[0] == 0
    assert await stats(store) == {"enqueued": 1, "succeeded": 1}


async def test_a_job_whose_result_is_not_kept_leaves_nothing(store: Store) -> None:
    await push(store, "a")
    assert await succeed(store, *await claim(store), ttl_ms=0) == []
    assert await result(store, "a") is None
    assert await index(store) == {}


async def test_a_retry_is_scheduled_with_its_new_bytes_and_its_crashes(store: Store) -> None:
    await push(store, "a", lane=LOW)
    await outlive_lease(store, *await claim(store))
    await reclaim(store, LOW)
    (job,) = await claim(store)
    assert await retry(store, job, job=b"second\n\x00 try", delay_ms=0) == []
    assert await index(store) == {"a": "scheduled"}
    assert await claim(store) == []
    assert await store.promote(DEFAULT) == (1, -1)
    (again,) = await claim(store)
    assert (again.lane, again.job, again.crashes) == (LOW, b"second\n\x00 try", 1)
    assert again.entry != job.entry
    assert (await stats(store))["retried"] == 1


async def test_a_retry_waits_for_its_delay(store: Store) -> None:
    await push(store, "a")
    await retry(store, *await claim(store), delay_ms=60_000)
    moved, due_in_ms = await store.promote(DEFAULT)
    assert moved == 0
    assert 50_000 < due_in_ms <= 60_000


async def test_a_dead_letter_tells_everything(store: Store) -> None:
    await push(store, "a", lane=HIGH, job=b"the job\n")
    (job,) = await claim(store)
    assert await bury(store, job, reason="rejected", error="Reject: bad \u2028 input") == []
    ((entry, letter),) = await letters(store)
    assert letter == {
        "id": b"a",
        "lane": b"high",
        "job": b"the job\n",
        "reason": b"rejected",
        "error": "Reject: bad \u2028 input".encode(),
        "traceback": b"Traceback",
        "attempts": b"1",
        "crashes": b"0",
        "worker": b"w1",
    }
    assert await index(store) == {"a": f"dead {entry.decode()}"}
    assert (await stats(store))["dead"] == 1


async def test_a_foreign_entry_is_buried_without_a_place_in_the_index(store: Store) -> None:
    await store.link.command("XADD", store.lane_keys[DEFAULT], "*", "hello", "world\n")
    (job,) = await claim(store)
    assert await bury(store, job, reason="undecodable") == []
    ((_, letter),) = await letters(store)
    assert (letter["id"], letter["job"]) == (b"", b"hello world\n")
    assert await index(store) == {}


async def test_all_endings_in_all_lanes_in_one_call(store: Store) -> None:
    for lane in ALL:
        await push(store, f"s{lane}", f"r{lane}", f"d{lane}", lane=lane)
    endings = Endings(len(store.lanes))
    for job in await claim(store):
        job_id = job.id.encode()
        match job.id[0]:
            case "s":
                endings.end(job.lane, job.entry, job_id, "succeeded", b"v", store.keys.result(job.id), 60_000)
            case "r":
                endings.retry(job.lane, job.entry, job_id, job.job, 60_000, b"0")
            case _:
                endings.bury(job.lane, job.entry, job_id, job.job, "failed", "e", "t", 1, b"0", "w1")
    assert endings.count == 9
    assert await store.finish(endings, now_ms()) == []
    where = await index(store)
    assert sorted(where) == ["d0", "d1", "d2", "r0", "r1", "r2"]
    assert [letter["lane"] for _, letter in await letters(store)] == [b"high", b"default", b"low"]
    assert await stats(store) == {"enqueued": 9, "succeeded": 3, "retried": 3, "dead": 3}


@pytest.mark.parametrize("end", [succeed, retry, bury])
async def test_a_batch_of_the_largest_size(store: Store, end: End) -> None:
    await push(store, *(f"j{n}" for n in range(BATCH)))
    jobs = await claim(store, BATCH)
    await store.watch([job.id for job in jobs])
    assert await end(store, *jobs) == []
    assert await store.link.command("XLEN", store.lane_keys[DEFAULT]) == 0
    await store.empty(DEFAULT)


async def test_nothing_to_finish_is_nothing(store: Store) -> None:
    assert await store.finish(Endings(len(store.lanes)), now_ms()) == []
    assert await keys_of(store) == []


# -- the commit token -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [succeed, retry, bury])
async def test_who_lost_the_lease_can_do_nothing(store: Store, end: End) -> None:
    await push_special(store, "a", unique="k")
    (zombie,) = await claim(store)
    await outlive_lease(store, zombie)
    await reclaim(store)
    before = await snapshot(store)
    assert await end(store, zombie) == [zombie.entry]
    assert await snapshot(store) == before
    (job,) = await claim(store, consumer="w2")
    before = await snapshot(store)
    assert await end(store, zombie) == [zombie.entry]
    assert await snapshot(store) == before
    assert await succeed(store, job, record=b"the true one") == []
    assert await end(store, zombie) == [zombie.entry]
    assert await result(store, "a") == b"the true one"
    assert await stats(store) == {"enqueued": 1, "crashed": 1, "succeeded": 1}


async def test_a_finish_that_is_repeated_records_nothing_twice(store: Store) -> None:
    await push(store, "a", "b", "c")
    a, b, c = await claim(store)
    endings = Endings(len(store.lanes))
    endings.end(a.lane, a.entry, b"a", "succeeded", b"v", store.keys.result("a"), 60_000)
    endings.retry(b.lane, b.entry, b"b", b.job, 60_000, b"0")
    endings.bury(c.lane, c.entry, b"c", c.job, "failed", "", "", 1, b"0", "w1")
    now = now_ms()
    assert await store.finish(endings, now) == []
    before = await snapshot(store)
    assert await store.finish(endings, now) == [(DEFAULT, one.entry) for one in (a, b, c)]
    assert await snapshot(store) == before


async def test_the_stale_ones_are_told_from_the_rest_of_their_batch(store: Store) -> None:
    await push(store, "a", "b", "c", "d")
    a, b, c, d = await claim(store)
    await outlive_lease(store, a, c)
    await reclaim(store)
    assert await succeed(store, a, b, c, d) == [a.entry, c.entry]
    assert sorted(await index(store)) == ["a", "c"]
    assert await result(store, "a") is None
    assert await result(store, "b") == b"done"


async def test_the_same_delivery_twice_in_a_batch_ends_once(store: Store) -> None:
    await push(store, "a", "b")
    a, b = await claim(store)
    assert await succeed(store, a, b, a) == [a.entry]
    assert await result(store, "a") == b"done"
    assert await index(store) == {}
    assert await stats(store) == {"enqueued": 2, "succeeded": 2}


async def test_two_different_endings_of_one_delivery_in_a_batch_record_one(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    endings = Endings(len(store.lanes))
    endings.end(job.lane, job.entry, b"a", "succeeded", b"v", store.keys.result("a"), 60_000)
    endings.retry(job.lane, job.entry, b"a", job.job, 0, b"0")
    endings.bury(job.lane, job.entry, b"a", job.job, "failed", "", "", 1, b"0", "w1")
    assert await store.finish(endings, now_ms()) == [(DEFAULT, job.entry)] * 2
    assert await index(store) == {}
    assert await letters(store) == []


async def test_same_entry_ids_in_two_lanes_are_two_deliveries(store: Store) -> None:
    for lane in (HIGH, LOW):
        fields = ["id", f"j{lane}", "job", "x", "crashes", "0"]
        entry = await store.link.command("XADD", store.lane_keys[lane], "5-5", *fields)
        await store.link.command("HSET", store.keys.index, f"j{lane}", f"{store.lanes[lane]} {entry.decode()}")
    high, low = await claim(store)
    assert high.entry == low.entry
    await outlive_lease(store, high)
    await reclaim(store, HIGH)
    endings = Endings(len(store.lanes))
    for job in (high, low):
        endings.end(job.lane, job.entry, job.id.encode(), "succeeded", b"", "", 0)
    assert await store.finish(endings, now_ms()) == [(HIGH, high.entry)]
    assert sorted(await index(store)) == ["j0"]


async def test_a_delivery_whose_lane_is_gone_cannot_end(store: Store) -> None:
    await push(store, "a")
    jobs = await claim(store)
    await store.link.command("DEL", store.lane_keys[DEFAULT], store.keys.index)
    assert await succeed(store, *jobs) == [jobs[0].entry]
    assert await result(store, "a") is None


# -- who waits, what was said, what was wished ----------------------------------------------------------------


async def test_an_ending_is_published_to_who_awaits_it_and_to_nobody_else(store: Store, redis: Redis) -> None:
    async with redis.pubsub() as ears:
        await ears.psubscribe(store.keys.ended + "*")
        assert (await ears.get_message(timeout=5))["type"] == "psubscribe"
        await push(store, "ends", "unwatched", "dies", "later")
        ends, unwatched, dies, later = await claim(store)
        assert await store.watch(["ends", "dies", "later"]) == [True] * 3
        await succeed(store, ends, record=b"value")
        await succeed(store, unwatched)
        await retry(store, later, delay_ms=60_000)
        await bury(store, dies)
        heard: list[tuple[str, bytes]] = []
        while len(heard) < 2:
            message = await ears.get_message(timeout=5)
            heard.append((message["channel"].decode().removeprefix(store.keys.ended), message["data"]))
        assert heard == [("ends", b"value"), ("dies", b"")]
    assert await store.link.command("SMEMBERS", store.keys.waiters) == [b"later"]
    assert await cancel(store, "later") == "cancelled"


@pytest.mark.parametrize("end", [succeed, bury])
async def test_whatever_was_kept_for_a_live_job_goes_with_it(store: Store, end: End) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    await store.watch(["a"])
    await store.report([(b"a", b"half")])
    assert await cancel(store, "a") == "running"
    assert await end(store, job) == []
    for key in (store.keys.waiters, store.keys.progress, store.keys.cancelled):
        assert await store.link.command("EXISTS", key) == 0


async def test_a_wish_to_cancel_outlives_a_retry(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    await store.report([(b"a", b"half")])
    assert await cancel(store, "a") == "running"
    assert await retry(store, job) == []
    assert await store.cancel_requests([b"a", b"b"]) == [b"a"]
    assert await store.link.command("EXISTS", store.keys.progress) == 0
    await store.promote(DEFAULT)
    assert await succeed(store, *await claim(store)) == []
    assert await store.cancel_requests([b"a"]) == []


async def test_a_stale_ending_leaves_who_waits_and_what_was_said(store: Store) -> None:
    await push(store, "a")
    (zombie,) = await claim(store)
    await outlive_lease(store, zombie)
    await reclaim(store)
    await store.watch(["a"])
    await store.report([(b"a", b"half")])
    before = await snapshot(store)
    assert await succeed(store, zombie) == [zombie.entry]
    assert await snapshot(store) == before
    assert await cancel(store, "a") == "cancelled"


# -- uniqueness keys ------------------------------------------------------------------------------------------


async def free(store: Store, job: Delivery, unique: str) -> list[bytes]:
    endings = Endings(len(store.lanes))
    endings.end(job.lane, job.entry, job.id.encode(), "succeeded", b"", "", 0)
    endings.free(store.keys.unique(unique), job.id.encode())
    return [entry for _, entry in await store.finish(endings, now_ms())]


async def test_an_ended_job_gives_up_its_uniqueness_key(store: Store) -> None:
    await push_special(store, "a", unique="k")
    (job,) = await claim(store)
    assert await free(store, job, "k") == []
    assert await store.link.command("EXISTS", store.keys.unique("k")) == 0


async def test_a_stale_ending_gives_up_nothing(store: Store) -> None:
    await push_special(store, "a", unique="k")
    (zombie,) = await claim(store)
    await outlive_lease(store, zombie)
    await reclaim(store)
    assert await free(store, zombie, "k") == [zombie.entry]
    assert await push_special(store, "b", unique="k") == {0: "a"}


async def test_a_key_that_another_job_holds_by_now_is_left_alone(store: Store) -> None:
    await push_special(store, "a", unique="k")
    (job,) = await claim(store)
    await store.link.command("SET", store.keys.unique("k"), "another", "PX", 60_000)
    assert await free(store, job, "k") == []
    assert await store.link.command("GET", store.keys.unique("k")) == b"another"


# -- nothing half-written -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["index", "scheduled", "parked", "dead", "stats", "waiters", "progress", "cancelled", "lane", "unique"],
)
async def test_a_key_of_another_type_is_refused_before_anything_is_written(store: Store, kind: str) -> None:
    await push_special(store, "a", unique="k")
    await push(store, "b", "c", lane=HIGH)
    b, c, a = await claim(store)
    now = now_ms()
    endings = Endings(len(store.lanes))
    endings.retry(b.lane, b.entry, b"b", b.job, 1000, b"0")
    endings.bury(c.lane, c.entry, b"c", c.job, "failed", "", "", 1, b"0", "w1")
    endings.end(a.lane, a.entry, b"a", "succeeded", b"v", store.keys.result("a"), 60_000)
    endings.free(store.keys.unique("k"), b"a")
    key = {
        "stats": store.keys.stats(now),
        "lane": store.lane_keys[DEFAULT],
        "unique": store.keys.unique("k"),
    }.get(kind) or getattr(store.keys, kind)
    kept = await store.link.command("DUMP", key)
    await store.link.command("DEL", key)
    await store.link.command("LPUSH", key, "x")
    before = await snapshot(store)
    with pytest.raises(ServerRefused, match="choose another queue name"):
        await store.finish(endings, now)
    assert await snapshot(store) == before
    await store.link.command("DEL", key)
    if kept is not None:
        await store.link.command("RESTORE", key, 60_000 if kind in ("unique", "stats") else 0, kept)
    assert await store.finish(endings, now) == []
    assert sorted(await index(store)) == ["b", "c"]


async def test_results_go_when_their_time_has_come(store: Store) -> None:
    await push(store, "a")
    await succeed(store, *await claim(store), ttl_ms=1)

    async def gone() -> bool:
        return await result(store, "a") is None

    await eventually(gone)
    assert await amiss(store) == []

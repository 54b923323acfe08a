"""cancel: what waits is ended at once; what runs is ended by its worker alone."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from asyncq.errors import ServerRefused
from asyncq.keys import GROUP
from asyncq.store import Store
from tests.jobs import (
    DEFAULT,
    HIGH,
    bury,
    cancel,
    claim,
    index,
    keys_of,
    open_store,
    push,
    push_special,
    retry,
    snapshot,
    stats,
    succeed,
)


async def test_a_queued_job_will_not_run(store: Store) -> None:
    await push(store, "a", "b", lane=HIGH)
    assert await cancel(store, "a") == "cancelled"
    assert [job.id for job in await claim(store)] == ["b"]
    assert await store.link.command("GET", store.keys.result("a")) == b"cancelled record"
    assert 0 < await store.link.command("PTTL", store.keys.result("a")) <= 60_000
    assert await stats(store) == {"enqueued": 2, "cancelled": 1}


async def test_a_queued_job_of_a_lane_that_was_claimed_from_will_not_run(store: Store) -> None:
    await push(store, "a", "b", "c")
    await claim(store, 1)
    assert await cancel(store, "b") == "cancelled"
    assert [job.id for job in await claim(store)] == ["c"]


async def test_a_scheduled_job_will_not_run(store: Store) -> None:
    await push_special(store, "a", delay_ms=60_000)
    assert await cancel(store, "a") == "cancelled"
    assert await store.promote(DEFAULT) == (0, -1)
    assert await store.link.command("EXISTS", store.keys.parked) == 0


async def test_a_retrying_job_will_not_run(store: Store) -> None:
    await push(store, "a")
    await retry(store, *await claim(store), delay_ms=60_000)
    assert await cancel(store, "a") == "cancelled"
    assert await store.promote(DEFAULT) == (0, -1)


async def test_no_result_is_kept_when_none_is_asked_for(store: Store) -> None:
    await push(store, "a")
    assert await cancel(store, "a", ttl_ms=0) == "cancelled"
    assert await store.link.command("EXISTS", store.keys.result("a")) == 0


async def test_a_running_job_goes_on_until_its_worker_has_stopped_it(store: Store, redis: Redis) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    async with redis.pubsub() as ears:
        await ears.subscribe(store.keys.control)
        assert (await ears.get_message(timeout=5))["type"] == "subscribe"
        assert await cancel(store, "a") == "running"
        assert (await ears.get_message(timeout=5))["data"] == b"cancel a"
    assert await store.cancel_requests([b"a"]) == [b"a"]
    assert await store.link.command("EXISTS", store.keys.result("a")) == 0
    assert await succeed(store, job, record=b"was quicker") == []
    assert await store.link.command("GET", store.keys.result("a")) == b"was quicker"
    assert await store.cancel_requests([b"a"]) == []


async def test_a_cancel_that_comes_after_the_end_changes_nothing(store: Store) -> None:
    await push(store, "a", "b")
    a, b = await claim(store)
    await succeed(store, a)
    await bury(store, b)
    before = await snapshot(store)
    assert await cancel(store, "a") == ""
    assert await cancel(store, "b") == "dead"
    assert await cancel(store, "never heard of") == ""
    assert await snapshot(store) == before


async def test_a_cancel_that_comes_twice_counts_once(store: Store) -> None:
    await push(store, "a")
    assert [await cancel(store, "a") for _ in range(2)] == ["cancelled", ""]
    assert await stats(store) == {"enqueued": 1, "cancelled": 1}


async def test_a_delivery_that_is_handed_back_can_be_cancelled_at_once(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    assert await cancel(store, "a") == "running"
    await store.release(DEFAULT, [job.entry])
    assert await cancel(store, "a") == "cancelled"
    assert await store.link.command("EXISTS", store.keys.cancelled) == 0
    assert await succeed(store, job) == [job.entry]
    assert await store.link.command("GET", store.keys.result("a")) == b"cancelled record"


async def test_who_awaits_a_waiting_job_is_told(store: Store, redis: Redis) -> None:
    await push_special(store, "a", delay_ms=60_000)
    assert await store.watch(["a"]) == [True]
    async with redis.pubsub() as ears:
        await ears.subscribe(store.keys.ended + "a")
        assert (await ears.get_message(timeout=5))["type"] == "subscribe"
        await cancel(store, "a")
        assert (await ears.get_message(timeout=5))["data"] == b"cancelled record"


async def test_without_a_group_nobody_runs_it(store: Store) -> None:
    await push(store, "a")
    await claim(store)
    await store.link.command("XGROUP", "DESTROY", store.lane_keys[DEFAULT], GROUP)
    assert await cancel(store, "a") == "cancelled"


async def test_a_lane_we_do_not_know_is_an_error_and_the_job_stays(store: Store) -> None:
    await push(store, "a")
    async with open_store(store.link.url, store.queue, ("other",)) as stranger:
        with pytest.raises(ServerRefused, match="lane default of the job is not among the lanes"):
            await cancel(stranger, "a")
    assert [job.id for job in await claim(store)] == ["a"]


@pytest.mark.parametrize("where", ["queued", "scheduled", "running"])
@pytest.mark.parametrize("kind", ["index", "scheduled", "parked", "waiters", "stats", "cancelled", "progress", "lane"])
async def test_a_key_of_another_type_is_refused_before_anything_is_written(store: Store, kind: str, where: str) -> None:
    if where == "scheduled":
        await push_special(store, "a", delay_ms=60_000)
    else:
        await push(store, "a")
    held = await claim(store) if where == "running" else []
    stats_keys = [key for key in await keys_of(store) if b":stats:" in key]
    key: Any = {"stats": stats_keys[0], "lane": store.lane_keys[DEFAULT]}.get(kind) or getattr(store.keys, kind)
    kept = await store.link.command("DUMP", key)
    if kind == "lane" and where == "scheduled":
        kept = None  # A scheduled job's lane is not looked at.
        await store.link.command("DEL", key)
        assert await cancel(store, "a") == "cancelled"
        return
    await store.link.command("DEL", key)
    await store.link.command("LPUSH", key, "x")
    before = await snapshot(store)
    with pytest.raises(ServerRefused, match="choose another queue name"):
        await store.cancel("a", b"record", 1000, int(stats_keys[0].rpartition(b":")[2]) * 60_000)
    assert await snapshot(store) == before
    await store.link.command("DEL", key)
    if kept is not None:
        await store.link.command("RESTORE", key, 60_000 if kind == "stats" else 0, kept)
    assert await cancel(store, "a") == ("running" if held else "cancelled")
    await succeed(store, *held)
    assert await index(store) == {}

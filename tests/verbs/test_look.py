"""look: where one job is, in one consistent glance."""

from __future__ import annotations

import msgspec
import pytest

from asyncq import codec
from asyncq.errors import ServerRefused
from asyncq.job import JobInfo
from asyncq.keys import GROUP
from asyncq.monitor import Monitor
from asyncq.store import Store
from tests.jobs import (
    HIGH,
    LOW,
    bury,
    cancel,
    claim,
    outlive_lease,
    push,
    push_special,
    reclaim,
    retry,
    snapshot,
    succeed,
)

JOB = codec.frame(codec.Body("add", msgspec.Raw(codec.encode([1, 2])), 1_700_000_000_000))
RECORD = codec.encode(codec.Record("succeeded", "add", msgspec.Raw(b"\x03"), "", 1, 1_700_000_000_000, 2, 3, "w1"))


async def look(store: Store, job_id: str = "a") -> JobInfo | None:
    return await Monitor(store.link, store.queue, store.lanes).look(job_id)


async def test_nothing_is_known(store: Store) -> None:
    assert await look(store) is None


async def test_queued(store: Store) -> None:
    await push(store, "a", lane=HIGH, job=JOB)
    info = await look(store)
    assert info is not None
    assert (info.state, info.lane, info.task, info.args, info.attempt, info.crashes) == (
        "queued", "high", "add", [1, 2], 1, 0,
    )  # fmt: skip


async def test_scheduled(store: Store) -> None:
    await push_special(store, "a", lane=LOW, job=JOB, delay_ms=60_000)
    info = await look(store)
    assert info is not None
    assert (info.state, info.lane, info.task) == ("scheduled", "low", "add")
    assert info.due_ms is not None
    due = await store.link.command("ZSCORE", store.keys.scheduled, "a")
    assert info.due_ms == int(float(due))


async def test_running_and_by_whom(store: Store) -> None:
    await push(store, "a", job=JOB)
    (job,) = await claim(store, consumer="worker-7")
    await store.report([(b"a", codec.encode(codec.Progress(50.0, {"step": "two"}, 0)))])
    info = await look(store)
    assert info is not None
    assert (info.state, info.worker, info.progress, info.meta) == ("running", "worker-7", 50.0, {"step": "two"})
    await succeed(store, job)


async def test_retrying(store: Store) -> None:
    await push(store, "a", job=JOB)
    await retry(store, *await claim(store), job=codec.with_counts(JOB, 2, 0), delay_ms=60_000)
    info = await look(store)
    assert info is not None
    assert (info.state, info.attempt) == ("retrying", 2)


async def test_queued_again_after_a_crash(store: Store) -> None:
    await push(store, "a", job=JOB)
    await outlive_lease(store, *await claim(store))
    await reclaim(store)
    info = await look(store)
    assert info is not None
    assert (info.state, info.crashes) == ("queued", 1)


async def test_dead(store: Store) -> None:
    await push(store, "a", job=JOB, lane=HIGH)
    await bury(store, *await claim(store), error="ValueError: no")
    info = await look(store)
    assert info is not None
    assert (info.state, info.reason, info.error, info.lane, info.worker) == (
        "failed", "failed", "ValueError: no", "high", "w1",
    )  # fmt: skip


async def test_dead_by_poison(store: Store) -> None:
    await push(store, "a", job=JOB)
    await outlive_lease(store, *await claim(store))
    await reclaim(store, max_crashes=1)
    info = await look(store)
    assert info is not None
    assert (info.state, info.reason, info.crashes) == ("failed", "poison", 1)


async def test_ended(store: Store) -> None:
    await push(store, "a", job=JOB)
    await succeed(store, *await claim(store), record=RECORD)
    info = await look(store)
    assert info is not None
    assert (info.state, info.value, info.attempt) == ("succeeded", 3, 1)


async def test_an_old_result_does_not_hide_a_live_job(store: Store) -> None:
    await push(store, "a", job=JOB)
    await succeed(store, *await claim(store), record=RECORD)
    await push(store, "a", job=JOB)
    info = await look(store)
    assert info is not None
    assert info.state == "queued"


async def test_bytes_that_cannot_be_read_are_shown_as_far_as_they_go(store: Store) -> None:
    await push(store, "a", job=b"\x01\x00\x05\x00 no msgpack \xff")
    await push(store, "b", job=b"")
    for job_id, attempt in (("a", 5), ("b", 1)):
        info = await look(store, job_id)
        assert info is not None
        assert (info.state, info.task, info.attempt) == ("queued", "", attempt)


async def test_without_a_group_it_is_queued(store: Store) -> None:
    await push(store, "a", job=JOB)
    await claim(store)
    await store.link.command("XGROUP", "DESTROY", store.lane_keys[1], GROUP)
    info = await look(store)
    assert info is not None
    assert info.state == "queued"


async def test_a_lane_that_was_abolished_is_still_named(store: Store) -> None:
    await push(store, "a", job=JOB, lane=LOW)
    info = await Monitor(store.link, store.queue, ("high", "default")).look("a")
    assert info is not None
    assert (info.state, info.lane) == ("queued", "low")


async def test_writes_nothing(store: Store) -> None:
    await push_special(store, "a", delay_ms=60_000)
    await push(store, "b", "c", "d")
    b, c = await claim(store, 2)
    await succeed(store, b, record=RECORD)
    await bury(store, c)
    before = await snapshot(store)
    for job_id in "abcde":
        await look(store, job_id)
    assert await snapshot(store) == before


async def test_a_key_of_another_type_is_an_error(store: Store) -> None:
    await store.link.command("SET", store.keys.index, "x")
    with pytest.raises(ServerRefused, match="WRONGTYPE"):
        await look(store)
    await store.link.command("DEL", store.keys.index)
    assert await cancel(store, "a") == ""

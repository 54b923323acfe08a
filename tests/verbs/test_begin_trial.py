"""begin_trial: a job is on trial only while a worker holds it."""

from __future__ import annotations

from asyncq.store import Store
from tests.jobs import bury, claim, keys_of, outlive_lease, push, reclaim, retry, snapshot, succeed


async def on_trial(store: Store) -> set[bytes]:
    return set(await store.link.command("SMEMBERS", store.keys.trials))


async def test_every_way_to_leave_the_worker_ends_the_trial(store: Store) -> None:
    await push(store, "succeeds", "retries", "dies", "returns", "is lost")
    jobs = {job.id: job for job in await claim(store)}
    for job in jobs.values():
        assert await store.begin_trial(job.lane, "w1", job.entry, job.id.encode())
    assert await on_trial(store) == {job_id.encode() for job_id in jobs}
    await succeed(store, jobs["succeeds"])
    await retry(store, jobs["retries"])
    await bury(store, jobs["dies"])
    await store.release(jobs["returns"].lane, [jobs["returns"].entry])
    assert await on_trial(store) == {b"is lost"}
    await outlive_lease(store, jobs["is lost"])
    await reclaim(store)
    assert store.keys.trials.encode() not in await keys_of(store)


async def test_a_worker_that_lost_the_job_changes_nothing(store: Store) -> None:
    await push(store, "a")
    (old,) = await claim(store)
    await outlive_lease(store, old)
    await reclaim(store)
    before = await snapshot(store)
    assert not await store.begin_trial(old.lane, "w1", old.entry, b"a")
    assert await snapshot(store) == before
    (new,) = await claim(store, consumer="w2")
    assert not await store.begin_trial(new.lane, "w1", new.entry, b"a"), "another worker's"
    assert await succeed(store, new) == []
    assert not await store.begin_trial(new.lane, "w2", new.entry, b"a")
    assert await on_trial(store) == set()


async def test_a_lane_that_is_gone_holds_nothing(store: Store) -> None:
    assert not await store.begin_trial(0, "w1", b"1-1", b"a")
    assert await keys_of(store) == []

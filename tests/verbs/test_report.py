"""report: the last progress of live jobs, gone when they are."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from asyncq.errors import ServerRefused
from asyncq.store import BATCH, Store
from tests.jobs import DEFAULT, bury, claim, keys_of, pairs, push, retry, snapshot, succeed


async def test_the_last_word_is_kept_and_every_word_is_published(store: Store, redis: Redis) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    async with redis.pubsub() as ears:
        await ears.subscribe(store.keys.reported + "a")
        assert (await ears.get_message(timeout=5))["type"] == "subscribe"
        assert await store.report([(b"a", b"10\x00\n")]) == 1
        assert await store.report([(b"a", b"20")]) == 1
        assert (await ears.get_message(timeout=5))["data"] == b"10\x00\n"
        assert (await ears.get_message(timeout=5))["data"] == b"20"
    assert pairs(await store.link.command("HGETALL", store.keys.progress)) == {b"a": b"20"}
    assert await succeed(store, job) == []
    assert store.keys.progress.encode() not in await keys_of(store)


async def test_what_comes_after_the_end_is_dropped(store: Store) -> None:
    await push(store, "ended", "dead")
    ended, dead = await claim(store)
    await succeed(store, ended)
    await bury(store, dead)
    before = await snapshot(store)
    assert await store.report([(b"ended", b"1"), (b"dead", b"1"), (b"unknown", b"1")]) == 0
    assert await snapshot(store) == before


async def test_a_retry_begins_without_progress(store: Store) -> None:
    await push(store, "a")
    (job,) = await claim(store)
    await store.report([(b"a", b"50")])
    await retry(store, job, delay_ms=60_000)
    assert await store.link.command("HEXISTS", store.keys.progress, "a") == 0


async def test_a_batch_of_the_largest_size(store: Store) -> None:
    ids = [f"j{n}" for n in range(BATCH)]
    await push(store, *ids)
    assert await store.report([(job_id.encode(), b"1") for job_id in ids]) == BATCH
    await store.empty(DEFAULT)


async def test_a_key_of_another_type_is_refused(store: Store) -> None:
    await push(store, "a")
    await store.link.command("SET", store.keys.progress, "x")
    before = await snapshot(store)
    with pytest.raises(ServerRefused, match="choose another queue name"):
        await store.report([(b"a", b"1")])
    assert await snapshot(store) == before
    await store.link.command("DEL", store.keys.progress)

"""Short ways to push, claim and end jobs through a `Store`, and one look that finds whatever is amiss."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from asyncq import connect
from asyncq.clock import now_ms
from asyncq.keys import GROUP
from asyncq.link import Link
from asyncq.store import Endings, Push, Store

LANES = ("high", "default", "low")
HIGH, DEFAULT, LOW = range(3)
ALL = (HIGH, DEFAULT, LOW)
LEASE_MS = 30_000


class Delivery(NamedTuple):
    """What `claim` brought, readable."""

    lane: int
    entry: bytes
    id: str
    job: bytes
    crashes: int


@asynccontextmanager
async def open_store(url: str, name: str, lanes: tuple[str, ...] = LANES, **options: Any) -> AsyncIterator[Store]:
    link = Link(connect.client(url, **options), url)
    try:
        yield Store(link, name, lanes)
    finally:
        await link.aclose()


async def push(
    store: Store, *ids: str, lane: int = DEFAULT, job: bytes = b"job", producer: str = "", sequence: int = 1
) -> dict[int, str]:
    """Plain jobs, as one push of a producer of their own unless told otherwise."""
    batch = Push(len(store.lanes))
    for job_id in ids:
        batch.add(lane, job_id, job)
    return await store.enqueue(producer or secrets.token_hex(8), sequence, batch, now_ms())


async def push_special(
    store: Store,
    *ids: str,
    lane: int = DEFAULT,
    job: bytes = b"job",
    delay_ms: int = 0,
    chosen: bool = False,
    unique: str = "",
    unique_ms: int = 60_000,
    producer: str = "",
    sequence: int = 1,
) -> dict[int, str]:
    """Jobs that are delayed, have a chosen id, or hold a uniqueness key."""
    batch = Push(len(store.lanes))
    for job_id in ids:
        result = store.keys.result(job_id) if chosen else ""
        batch.add_special(lane, job_id, job, delay_ms, result, store.keys.unique(unique) if unique else "", unique_ms)
    return await store.enqueue(producer or secrets.token_hex(8), sequence, batch, now_ms())


async def claim(store: Store, wanted: int = 10, consumer: str = "w1", lanes: Iterable[int] = ALL) -> list[Delivery]:
    order = list(lanes)
    claimed = await store.claim(consumer, wanted, order, [0] * len(order))
    assert claimed.problem == ""
    return deliveries(order, claimed.rows)


def deliveries(order: list[int], rows: list[Any]) -> list[Delivery]:
    return [
        Delivery(order[turn - 1], entry, job_id.decode(), job, int(crashes))
        for turn, entry, job_id, job, crashes in zip(*[iter(rows)] * 5, strict=True)
    ]


async def succeed(store: Store, *jobs: Delivery, record: bytes = b"done", ttl_ms: int = 60_000) -> list[bytes]:
    """End them with a result; returns the stale entries."""
    endings = Endings(len(store.lanes))
    for job in jobs:
        key = store.keys.result(job.id) if ttl_ms else ""
        endings.end(job.lane, job.entry, job.id.encode(), "succeeded", record, key, ttl_ms)
    return [entry for _, entry in await store.finish(endings, now_ms())]


async def retry(store: Store, *jobs: Delivery, job: bytes = b"again", delay_ms: int = 0) -> list[bytes]:
    """Put them off; returns the stale entries."""
    endings = Endings(len(store.lanes))
    for one in jobs:
        endings.retry(one.lane, one.entry, one.id.encode(), job, delay_ms, str(one.crashes).encode())
    return [entry for _, entry in await store.finish(endings, now_ms())]


async def bury(store: Store, *jobs: Delivery, reason: str = "failed", error: str = "ValueError: no") -> list[bytes]:
    """Dead-letter them; returns the stale entries."""
    endings = Endings(len(store.lanes))
    for job in jobs:
        crashes = str(job.crashes).encode()
        endings.bury(job.lane, job.entry, job.id.encode(), job.job, reason, error, "Traceback", 1, crashes, "w1")
    return [entry for _, entry in await store.finish(endings, now_ms())]


async def cancel(store: Store, job_id: str, ttl_ms: int = 60_000) -> str:
    return await store.cancel(job_id, b"cancelled record", ttl_ms, now_ms())


async def outlive_lease(store: Store, *jobs: Delivery, consumer: str = "w1") -> None:
    """Let these deliveries look as if nobody had renewed them for longer than `LEASE_MS`."""
    for job in jobs:
        lane = store.lane_keys[job.lane]
        await store.link.command("XCLAIM", lane, GROUP, consumer, 0, job.entry, "IDLE", LEASE_MS * 2, "JUSTID")


async def reclaim(
    store: Store, lane: int = DEFAULT, max_crashes: int = 3, consumer: str = "reaper", count: int = 100
) -> tuple[int, int]:
    """One sweep over a lane: how many went back, how many were buried."""
    cursor, back, buried = b"", 0, 0
    while cursor != b"0-0":
        cursor, some, dead = await store.reclaim(
            lane, consumer, LEASE_MS, cursor or b"0-0", max_crashes, now_ms(), count
        )
        back, buried = back + some, buried + dead
    return back, buried


async def letters(store: Store) -> list[tuple[bytes, dict[str, bytes]]]:
    """The dead letters, oldest first."""
    found = await store.link.command("XRANGE", store.keys.dead, "-", "+")
    return [(entry, {name.decode(): value for name, value in pairs(fields).items()}) for entry, fields in found]


async def index(store: Store) -> dict[str, str]:
    """Job id -> where it is."""
    found = await store.link.command("HGETALL", store.keys.index)
    return {job_id.decode(): place.decode() for job_id, place in pairs(found).items()}


async def stats(store: Store) -> dict[str, int]:
    """The counters, over all minutes."""
    total: dict[str, int] = {}
    for key in await keys_of(store):
        if b":stats:" in key:
            for name, count in pairs(await store.link.command("HGETALL", key)).items():
                total[name.decode()] = total.get(name.decode(), 0) + int(count)
    return total


async def rung(store: Store) -> int:
    """How many tokens the bells hold."""
    return sum([await store.link.command("LLEN", bell) for bell in store.bell_keys])


async def silence(store: Store) -> None:
    """Take the bells' tokens, as workers do that wake up."""
    await store.link.command("DEL", *store.bell_keys)


async def keys_of(store: Store) -> list[bytes]:
    """Every key of the queue."""
    cursor, found = b"0", []
    while True:
        cursor, some = await store.link.command("SCAN", cursor, "MATCH", store.keys.prefix + "*", "COUNT", 1000)
        found += some
        if cursor == b"0":
            return sorted(found)


async def snapshot(store: Store) -> dict[bytes, bytes]:
    """All data of the queue, to see that something changed nothing."""
    return {key: await store.link.command("DUMP", key) for key in await keys_of(store)}


def pairs(flat: list[Any]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def amiss(store: Store) -> list[str]:
    """What contradicts the design: each live job in the index and in exactly one place, and nothing of the dead.

    Entries that asyncq did not write are no jobs and are left out.
    """
    keys, command = store.keys, store.link.command
    places: list[tuple[str, str]] = []
    wrong: list[str] = []
    for name, key in zip(store.lanes, store.lane_keys, strict=True):
        entries = await command("XRANGE", key, "-", "+")
        places += [(fields[1].decode(), f"{name} {entry.decode()}") for entry, fields in entries if ours(fields)]
        if await command("EXISTS", key):
            groups = await command("XINFO", "GROUPS", key)
            if any(pairs(group)[b"name"] == GROUP.encode() for group in groups):
                there = {entry for entry, _ in entries}
                pending = await command("XPENDING", key, GROUP, "-", "+", 100_000)
                wrong += [f"pending in {name} but gone: {row[0]!r}" for row in pending if row[0] not in there]
    scheduled = await command("ZRANGE", keys.scheduled, 0, -1)
    places += [(job_id.decode(), "scheduled") for job_id in scheduled]
    places += [
        (letter["id"].decode(), f"dead {entry.decode()}") for entry, letter in await letters(store) if letter["id"]
    ]
    where = await index(store)
    seen: set[str] = set()
    for job_id, place in places:
        if job_id in seen:
            wrong.append(f"{job_id} is in two places")
        seen.add(job_id)
        if where.get(job_id) != place:
            wrong.append(f"{job_id} is at {place}, the index says {where.get(job_id)}")
    wrong += [f"the index has {job_id} at {where[job_id]}, where it is not" for job_id in where.keys() - seen]
    parked = await command("HKEYS", keys.parked)
    if sorted(parked) != sorted(scheduled):
        wrong.append(f"parked {parked} but scheduled {scheduled}")
    live = {job_id for job_id, place in where.items() if not place.startswith("dead ")}
    for about, words in (
        ("waiters", await command("SMEMBERS", keys.waiters)),
        ("cancelled", await command("SMEMBERS", keys.cancelled)),
        ("trials", await command("SMEMBERS", keys.trials)),
        ("progress", await command("HKEYS", keys.progress)),
    ):
        wrong += [f"{about} remembers {word!r}, which is not live" for word in words if word.decode() not in live]
    return wrong


def ours(fields: list[bytes]) -> bool:
    return fields[::2] == [b"id", b"job", b"crashes"] and bool(fields[1])

"""The bare limits: the same scripts on the same server, in a loop with nothing around it.

No tasks, no arguments, no timeouts, no tracking of what runs: what is left is the server, the wire and
redis-py. Nothing built on these scripts can be faster; the ratio to it is what the engine costs.
"""

from __future__ import annotations

import time

from asyncq import codec, connect, ids
from asyncq.clock import now_ms
from asyncq.link import Link
from asyncq.store import BATCH, Endings, Push, Store

__all__ = ["drain", "enqueue", "open_store", "pickup"]

LANES = ("high", "default", "low")
RESULT_TTL_MS = 600_000


def open_store(url: str, name: str) -> Store:
    return Store(Link(connect.client(url), url), name, LANES)


async def enqueue(store: Store, jobs: int, job: bytes) -> float:
    """Jobs a second with pushes prepared beforehand."""
    pushes = []
    for _ in range(0, jobs, BATCH):
        push = Push(len(LANES))
        for job_id in ids.new_ids(BATCH, now_ms()):
            push.add(1, job_id, job)
        pushes.append(push)
    begun = time.perf_counter()
    for sequence, push in enumerate(pushes, 1):
        await store.enqueue("bare", sequence, push, now_ms())
    return jobs / (time.perf_counter() - begun)


async def drain(store: Store, jobs: int, record: bytes, ttl_ms: int) -> float:
    """Jobs a second: claim a batch, record the batch, nothing in between."""
    await store.make_groups()
    done, begun = 0, time.perf_counter()
    while done < jobs:
        claimed = await store.claim("bare", BATCH, (0, 1, 2), (0, 0, 0))
        endings, rows = Endings(len(LANES)), claimed.rows
        for i in range(0, len(rows), 5):
            key = store.keys.result(rows[i + 2].decode()) if ttl_ms else ""
            endings.end(rows[i] - 1, rows[i + 1], rows[i + 2], "succeeded", record, key, ttl_ms)
        assert not await store.finish(endings, claimed.now_ms)
        done += endings.count
    return jobs / (time.perf_counter() - begun)


async def pickup(store: Store) -> None:
    """Wait for the bell, claim, and record as result how long the job has been on its way. For ever."""
    await store.make_groups()
    while True:
        claimed = await store.wait_and_claim("bare", BATCH, (0, 1, 2), (0, 0, 0), 2.0)
        assert claimed is not None
        arrived, endings, rows = time.monotonic_ns(), Endings(len(LANES)), claimed.rows
        for i in range(0, len(rows), 5):
            sent = codec.decode_any(codec.decode_body(rows[i + 3]).args)[0]
            key = store.keys.result(rows[i + 2].decode())
            took = codec.encode(arrived - sent)
            endings.end(rows[i] - 1, rows[i + 1], rows[i + 2], "succeeded", took, key, RESULT_TTL_MS)
        if endings.count:
            await store.finish(endings, claimed.now_ms)

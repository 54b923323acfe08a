"""What tests of the worker share: queues of their own, raw looks at Redis, worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis

from asyncq import Queue, Retry
from asyncq.keys import GROUP, Keys
from tests.servers import TestServer

PROMPTLY = 8.0
"""Generous bound for what takes milliseconds: the machine may be busy."""

AT_ONCE = Retry(attempts=3, backoff="constant", base=0)


def queue_of(server: TestServer, name: str, **settings: Any) -> Queue:
    return Queue(name, url=server.url, **settings)


async def raw(redis: Redis, *words: str) -> Any:
    """One command, the reply as it is."""
    return await redis.execute_command(*words)  # type: ignore[no-untyped-call]


async def consumers(redis: Redis, name: str, lane: str = "default") -> list[str]:
    """Who the consumer group of a lane knows."""
    rows: Any = await raw(redis, "XINFO", "CONSUMERS", Keys(name).lane(lane), GROUP)
    return [dict(zip(row[::2], row[1::2], strict=True))[b"name"].decode() for row in rows]


async def letters(redis: Redis, name: str) -> list[dict[str, str]]:
    """The dead letters of a queue, oldest first, without their job."""
    rows: Any = await redis.xrange(Keys(name).dead)
    return [
        {key.decode(): value.decode(errors="replace") for key, value in fields.items() if key != b"job"}
        for _, fields in rows
    ]


async def size(redis: Redis, name: str) -> dict[str, int]:
    """How many jobs each place holds, lanes together."""
    keys = Keys(name)
    lanes = [key async for key in redis.scan_iter(keys.lane("*"))]
    return {
        "lanes": sum([await redis.xlen(key) for key in lanes]),
        "scheduled": await redis.zcard(keys.scheduled),
        "parked": await redis.hlen(keys.parked),
        "dead": await redis.xlen(keys.dead),
        "index": await redis.hlen(keys.index),
    }


NOTHING = {"lanes": 0, "scheduled": 0, "parked": 0, "dead": 0, "index": 0}


async def counters(redis: Redis, name: str = "t") -> Counter[str]:
    """What a queue has counted, all minutes together."""
    total: Counter[str] = Counter()
    async for key in redis.scan_iter(f"aq:{{{name}}}:stats:*"):
        counts: Any = await redis.hgetall(key)
        total.update({word.decode(): int(count) for word, count in counts.items()})
    return total


async def commands(redis: Redis) -> int:
    """How many commands the server has run so far."""
    return int((await redis.info("stats"))["total_commands_processed"])


@contextmanager
def worker_process(module: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own: `python -m tests.worker.<module> <words>`; killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.worker.{module}", *words], stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

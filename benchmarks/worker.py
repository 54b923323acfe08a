"""The other process of the latency benchmark: `python -m benchmarks.worker bare|asyncq URL QUEUE`."""

from __future__ import annotations

import sys
import time

import uvloop

from asyncq import Queue, Worker
from asyncq.worker.tuning import calm_collector
from benchmarks import bare

__all__ = ["ping", "queue_of"]


def queue_of(url: str, name: str) -> Queue:
    """The queue that all benchmarks use, with their tasks."""
    queue = Queue(name, url=url, lanes=bare.LANES)
    queue.task(timeout=60)(add)
    queue.task(name="forget", timeout=None, result_ttl=0)(add)
    queue.task(timeout=60)(ping)
    return queue


async def add(left: int, right: int) -> int:
    return left + right


async def ping(sent_ns: int) -> int:
    """Nanoseconds from just before the enqueue to here; both clocks are the machine's monotonic one."""
    return time.monotonic_ns() - sent_ns


if __name__ == "__main__":
    kind, url, name = sys.argv[1:]
    calm_collector()
    if kind == "bare":
        uvloop.run(bare.pickup(bare.open_store(url, name)))
    else:
        uvloop.run(Worker(queue_of(url, name)).run())

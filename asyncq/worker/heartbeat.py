"""Says that this worker lives, and clears away the books of those that do not."""

from __future__ import annotations

import logging
import os
import socket

import msgspec

from asyncq.clock import now_ms
from asyncq.worker.sources import Source

__all__ = ["WorkerInfo", "clear_away_dead", "resident_mib"]

log = logging.getLogger("asyncq.worker")


class WorkerInfo(msgspec.Struct, omit_defaults=False, kw_only=True):
    """What a worker says of itself in the registry, as JSON. Times are ms since the epoch.

    lag_ms:  how late its event loop turns
    state:   running, quiet or stopping
    """

    name: str
    consumer: str = ""
    host: str = socket.gethostname()
    pid: int = 0
    state: str = "running"
    started_ms: int = 0
    seen_ms: int = 0
    heartbeat_ms: int = 5000
    lanes: tuple[str, ...] = ()
    concurrency: int = 0
    running: int = 0
    succeeded: int = 0
    retried: int = 0
    dead: int = 0
    cancelled: int = 0
    lag_ms: int = 0
    memory_mib: int = 0

    @property
    def is_late(self) -> bool:
        """Not heard of for so long that it must be presumed dead."""
        return now_ms() - self.seen_ms > max(30_000, 6 * self.heartbeat_ms)


async def clear_away_dead(source: Source) -> None:
    """Forget workers that are gone and hold nothing any more; what they hold is taken back first."""
    entries: list[bytes] = await source.store.link.command("HGETALL", source.store.keys.workers)
    for consumer, about in zip(entries[::2], entries[1::2], strict=True):
        try:
            info = msgspec.json.decode(about, type=WorkerInfo)
        except msgspec.DecodeError:
            continue
        if info.is_late and await source.store.retire(consumer.decode()) == 0:
            log.warning("worker %s has not been heard of; it is taken off the books", info.name)


def resident_mib() -> int:
    """Memory this process holds now, MiB; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except (OSError, ValueError, IndexError):
        return 0

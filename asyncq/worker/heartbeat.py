"""Says that this worker lives, and clears away the books of those that do not."""

from __future__ import annotations

import logging
import os

import msgspec

from asyncq.worker.sources import Source
from asyncq.workerinfo import WorkerInfo

__all__ = ["clear_away_dead", "resident_mib"]

log = logging.getLogger("asyncq.worker")


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

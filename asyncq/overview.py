"""Everything about a whole queue at a glance: its partitions added up, its workers, its rates. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from asyncq.clock import now_ms
from asyncq.keys import CATALOGUE
from asyncq.link import Link
from asyncq.monitor import COUNTERS, Monitor
from asyncq.workerinfo import WorkerInfo

__all__ = ["Catalogued", "LaneCounts", "Overview", "ServerInfo", "catalogue", "overview", "server_info", "server_says"]


class Catalogued(msgspec.Struct, frozen=True):
    """What a server's catalogue says of a queue."""

    lanes: tuple[str, ...] = ("default",)
    partitions: int = 1


class LaneCounts(msgspec.Struct):
    """One lane. `queued` waits, `running` is in the hands of workers."""

    lane: str
    queued: int = 0
    running: int = 0
    paused: bool = False


class Overview(msgspec.Struct):
    """One queue at one moment.

    workers:  those in the registry, the late ones too
    minutes:  the counters of the last minutes, oldest first; the last one is the current minute
    """

    queue: str
    partitions: int
    paused: bool
    lanes: list[LaneCounts]
    scheduled: int
    dead: int
    workers: list[WorkerInfo]
    minutes: list[dict[str, int]]

    @property
    def queued(self) -> int:
        return sum(lane.queued for lane in self.lanes)

    @property
    def running(self) -> int:
        return sum(lane.running for lane in self.lanes)

    @property
    def alive(self) -> list[WorkerInfo]:
        """The workers that have been heard of lately."""
        return [worker for worker in self.workers if not worker.is_late]


class ServerInfo(msgspec.Struct):
    """The server behind the queues. Sizes are bytes; max_memory 0 is no limit."""

    name: str
    version: str
    uptime_s: int
    used_memory: int
    max_memory: int
    clients: int


async def catalogue(link: Link) -> dict[str, Catalogued]:
    """The queues that this server has seen, by name."""
    words: list[bytes] = await link.command("HGETALL", CATALOGUE)
    found = {}
    for name, about in zip(words[::2], words[1::2], strict=True):
        try:
            found[name.decode()] = msgspec.json.decode(about, type=Catalogued)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # Not written by this version.
    return dict(sorted(found.items()))


async def overview(monitors: Sequence[Monitor], minutes: int = 5) -> Overview:
    """A queue by the monitors of all its partitions."""
    first, *_ = monitors
    total = Overview(first.queue, len(monitors), False, [LaneCounts(lane) for lane in first.lanes], 0, 0, [], [])
    workers: dict[str, WorkerInfo] = {}
    for monitor in monitors:
        counts = await monitor.counts()
        total.paused |= counts["paused"]
        total.scheduled += counts["scheduled"]
        total.dead += counts["dead"]
        for lane in total.lanes:
            here = counts["lanes"][lane.lane]
            lane.queued += here["queued"]
            lane.running += here["running"]
            lane.paused |= here["paused"]
        # A worker signs on with every partition.
        workers.update((worker.consumer, worker) for worker in await monitor.workers())
        total.minutes = _added(total.minutes, await monitor.stats(minutes))
    total.workers = sorted(workers.values(), key=lambda worker: (worker.name, worker.started_ms))
    return total


def _added(one: list[dict[str, int]], other: list[dict[str, int]]) -> list[dict[str, int]]:
    """Counters added minute by minute; a minute may have turned between two partitions."""
    by_minute = {row["minute"]: dict(row) for row in one}
    for row in other:
        mine = by_minute.setdefault(row["minute"], {"minute": row["minute"], **dict.fromkeys(COUNTERS, 0)})
        for name in COUNTERS:
            mine[name] += row[name]
    return [by_minute[minute] for minute in sorted(by_minute)]


def per_second(minutes: Sequence[Mapping[str, int]], counter: str) -> float:
    """How many a second over these minutes, the last of which is not over."""
    elapsed_s = max(1.0, (now_ms() - minutes[0]["minute"]) / 1000)
    return sum(row[counter] for row in minutes) / elapsed_s


async def server_says(link: Link) -> dict[str, str]:
    """INFO, as names and values."""
    text: bytes = await link.command("INFO")
    pairs = (line.partition(":") for line in text.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value for name, mark, value in pairs if mark}


async def server_info(link: Link) -> ServerInfo:
    """What people want to know of the server."""
    says = await server_says(link)
    return ServerInfo(
        **name_and_version(says),
        uptime_s=int(says.get("uptime_in_seconds", 0)),
        used_memory=int(says.get("used_memory", 0)),
        max_memory=int(says.get("maxmemory", 0)),
        clients=int(says.get("connected_clients", 0)),
    )


def name_and_version(says: Mapping[str, str]) -> dict[str, Any]:
    """Which program it is. Valkey calls itself Redis 7.2 besides, for old clients."""
    if "valkey_version" in says:
        return {"name": says.get("server_name", "valkey"), "version": says["valkey_version"]}
    return {"name": says.get("server_name", "redis"), "version": says.get("redis_version", "?")}

"""The names of everything in Redis. All keys of one partition share a hash tag, so a script runs in one slot."""

from __future__ import annotations

__all__ = ["CATALOGUE", "GROUP", "PATTERNS", "Keys"]

GROUP = "workers"
"""The one consumer group of every lane. It is always created at 0, so that nothing is skipped."""

CATALOGUE = "aq:queues"
"""Hash: queue name -> its lanes and partitions, so that tools find queues they were not told about."""

PATTERNS = {
    "lane": "aq:{queue}:lane:<name>",
    "index": "aq:{queue}:index",
    "scheduled": "aq:{queue}:scheduled",
    "parked": "aq:{queue}:parked",
    "dead": "aq:{queue}:dead",
    "result": "aq:{queue}:result:<id>",
    "bell": "aq:{queue}:bell:<lane>",
    "producer": "aq:{queue}:producer:<id>",
    "unique": "aq:{queue}:unique:<key>",
    "waiters": "aq:{queue}:waiters",
    "progress": "aq:{queue}:progress",
    "cancelled": "aq:{queue}:cancelled",
    "trials": "aq:{queue}:trials",
    "workers": "aq:{queue}:workers",
    "stats": "aq:{queue}:stats:<minute>",
    "paused": "aq:{queue}:paused",
}
"""Every kind of key, as scripts and documentation name it."""


class Keys:
    """The keys and channels of one partition of a queue."""

    __slots__ = (
        "cancelled",
        "control",
        "dead",
        "ended",
        "index",
        "parked",
        "paused",
        "prefix",
        "progress",
        "reported",
        "scheduled",
        "trials",
        "waiters",
        "workers",
    )

    def __init__(self, queue: str, partition: int = 0) -> None:
        tag = f"{queue}.{partition}" if partition else queue
        self.prefix = prefix = f"aq:{{{tag}}}:"
        self.index = prefix + "index"
        self.scheduled = prefix + "scheduled"
        self.parked = prefix + "parked"
        self.dead = prefix + "dead"
        self.waiters = prefix + "waiters"
        self.progress = prefix + "progress"
        self.cancelled = prefix + "cancelled"
        self.trials = prefix + "trials"
        self.workers = prefix + "workers"
        self.paused = prefix + "paused"
        self.ended = prefix + "ended:"  # channel per awaited job
        self.reported = prefix + "progress:"  # channel per job
        self.control = prefix + "control"  # channel to all workers

    def lane(self, name: str) -> str:
        return self.prefix + "lane:" + name

    def bell(self, lane: str) -> str:
        return self.prefix + "bell:" + lane

    def result(self, job_id: str) -> str:
        return self.prefix + "result:" + job_id

    def producer(self, producer_id: str) -> str:
        return self.prefix + "producer:" + producer_id

    def unique(self, key: str) -> str:
        return self.prefix + "unique:" + key

    def stats(self, now_ms: int) -> str:
        return self.prefix + "stats:" + str(now_ms // 60_000)

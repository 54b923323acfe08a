"""What a worker says of itself in the registry: written by `worker.heartbeat`, read by `monitor`."""

from __future__ import annotations

import socket

import msgspec

from asyncq.clock import now_ms

__all__ = ["WorkerInfo"]


class WorkerInfo(msgspec.Struct, omit_defaults=False, kw_only=True):
    """One worker, as JSON. Times are ms since the epoch.

    lag_ms:  how late its event loop turns
    state:   running, quiet, draining, stopping or stopping now
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

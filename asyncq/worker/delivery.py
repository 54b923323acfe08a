"""A delivery: an entry in this worker's hands, from claim to acknowledged ending."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Literal

from asyncq.job import RunningJob

if TYPE_CHECKING:
    from asyncq.worker.attempt import Runner
    from asyncq.worker.sources import Source

__all__ = ["Delivery", "StopReason"]

StopReason = Literal["", "soft timeout", "timeout", "cancelled", "lost", "handback"]
"""Why we interrupt its code: its time was up; somebody asked; its lease ran out; the worker stops."""


class Delivery:
    """One entry that this worker holds.

    lane, entry:   where it stands in `source`; the entry id is the lease
    job, crashes:  as they came from Redis
    claimed_ms:    server time of the claim, ms since the epoch; the run begins then
    leased_s:      when the lease was last known to be ours, monotonic
    deadline_s:    when its code is stopped next, monotonic; infinite for never
    stop:          why its code was cancelled, if it was
    settled:       its ending is decided; only recording it remains
    """

    __slots__ = (
        "_context",
        "args",
        "attempt",
        "body",
        "claimed_ms",
        "crashes",
        "deadline_s",
        "deferrals",
        "entry",
        "id",
        "job",
        "kwargs",
        "lane",
        "leased_s",
        "result_ttl_ms",
        "runner",
        "running",
        "settled",
        "soft_deadline_s",
        "soft_timeout_s",
        "source",
        "stop",
        "timeout_s",
    )

    # Set when the delivery is opened, by `open_delivery`.
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    timeout_s: float
    soft_timeout_s: float
    result_ttl_ms: int

    def __init__(
        self,
        source: Source,
        lane: int,
        entry: bytes,
        job_id: bytes,
        job: bytes,
        crashes: bytes,
        claimed_ms: int,
        leased_s: float,
    ) -> None:
        self.source, self.lane, self.entry, self.id = source, lane, entry, job_id
        self.job, self.crashes = job, crashes
        self.claimed_ms, self.leased_s = claimed_ms, leased_s
        self.attempt, self.deferrals = 1, 0
        self.deadline_s = self.soft_deadline_s = math.inf
        self.stop: StopReason = ""
        self.settled = False
        self.running: asyncio.Task[None] | None = None
        self.runner: Runner | None = None
        self.body: Any = None
        self._context: RunningJob | None = None

    def __repr__(self) -> str:
        task = self.runner.name if self.runner else "?"
        return f"job {self.id.decode(errors='replace')} of {task}"

    @property
    def crash_count(self) -> int:
        return int(self.crashes) if self.crashes.isdigit() else 0

    def context(self) -> RunningJob:
        """What `current_job()` shows. Made when first asked for: most jobs never ask."""
        if self._context is None:
            overrides = self.body.overrides
            self._context = RunningJob(
                self.source.report,
                job_id=self.id.decode(),
                task=self.body.task,
                queue=self.source.queue,
                lane=self.source.store.lanes[self.lane],
                attempt=self.attempt,
                crashes=self.crash_count,
                enqueued_ms=self.body.enqueued_ms,
                tags=(overrides.tags if overrides else None) or (),
            )
        return self._context

    def halt(self, why: StopReason) -> None:
        """Cancel its code, unless it is already on its way out for a reason that outranks this one."""
        if self.settled or self.stop in ("lost", "handback"):
            return
        if not (why == "timeout" and self.stop == "cancelled"):
            self.stop = why
        if why == "cancelled" and self.body is not None:
            self.context().cancelled = True
        if self.running is not None:
            # Not at once: a task cancelled before its first step would never run, nor end its job.
            self.running.get_loop().call_soon(self.running.cancel)

"""What is known of a job: from outside (`JobInfo`) and from inside its own run (`current_job`)."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

import msgspec

from asyncq.lifecycle import State

__all__ = ["JobInfo", "RunningJob", "current_job", "running_job"]


class JobInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One job as it was at one moment. Times are ms since the Unix epoch; None where they do not apply.

    args:       the arguments as plain values, where the job's bytes can be read
    attempt:    the run that is under way or comes next, or the number of runs of an ended job
    crashes:    how often a worker was lost while running it
    due_ms:     when a scheduled or retrying job goes to its lane
    reason:     why it was dead-lettered (see guarantees)
    progress:   percent, as the task last reported it, and `meta` what it said with it
    """

    id: str
    queue: str
    state: State
    task: str = ""
    lane: str = ""
    args: Any = None
    attempt: int = 1
    crashes: int = 0
    enqueued_ms: int | None = None
    due_ms: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    expires_ms: int | None = None
    worker: str = ""
    value: Any = None
    reason: str = ""
    error: str = ""
    traceback: str = ""
    progress: float | None = None
    meta: dict[str, Any] = {}
    tags: tuple[str, ...] = ()


class RunningJob:
    """The job that the calling code runs in: `current_job()`.

    id, task, queue, lane: what and where it is
    attempt:      this run, from 1
    crashes:      how often a worker was lost while running it
    enqueued_ms:  when it was made, ms since the Unix epoch
    tags:         the words it was enqueued with
    cancelled:    somebody cancelled it; an `async def` is also cancelled, a `def` should look now and then
    timed_out:    its soft timeout has passed
    """

    __slots__ = (
        "_report",
        "attempt",
        "cancelled",
        "crashes",
        "enqueued_ms",
        "id",
        "lane",
        "queue",
        "tags",
        "task",
        "timed_out",
    )

    def __init__(
        self,
        report: Callable[[str, float, dict[str, Any]], None],
        *,
        job_id: str,
        task: str,
        queue: str,
        lane: str,
        attempt: int,
        crashes: int,
        enqueued_ms: int,
        tags: tuple[str, ...],
    ) -> None:
        self._report = report
        self.id, self.task, self.queue, self.lane = job_id, task, queue, lane
        self.attempt, self.crashes = attempt, crashes
        self.enqueued_ms, self.tags = enqueued_ms, tags
        self.cancelled = self.timed_out = False

    def __repr__(self) -> str:
        return f"<RunningJob {self.id} of {self.task}, attempt {self.attempt}>"

    def progress(self, percent: float, **meta: Any) -> None:
        """Say how far the run is, 0 to 100, and anything else worth knowing.

        Returns at once and may be called as often as you like, from threads too: only the latest word is sent,
        a few times a second. Lost in a crash.

        Raises:
            ValueError: percent is not from 0 to 100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"progress is from 0 to 100, not {percent}")
        self._report(self.id, percent, meta)


class HasContext(Protocol):
    def context(self) -> RunningJob: ...


running_job: ContextVar[HasContext] = ContextVar("running_job")
"""Whose `context()` the running job is; it is made only when somebody asks."""


def current_job() -> RunningJob:
    """The job that the calling code runs in.

    Raises:
        RuntimeError: the code does not run in a job.
    """
    try:
        return running_job.get().context()
    except LookupError:
        raise RuntimeError("current_job() is for code that runs in a job") from None

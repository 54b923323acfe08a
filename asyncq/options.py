"""What can be chosen for the jobs of a task, and for one enqueue."""

from __future__ import annotations

import msgspec

from asyncq import codec
from asyncq.backoff import Retry
from asyncq.clock import LONGEST_S
from asyncq.config import check_types
from asyncq.errors import ConfigError

__all__ = ["CallOptions", "TaskOptions"]


class TaskOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What every job of a task gets unless one enqueue says otherwise. Times are seconds.

    lane:          where its jobs wait; empty for the queue's default lane
    retry:         how often and when it runs again
    timeout:       a run is stopped after this long and counts as failed; None for no limit
    soft_timeout:  `SoftTimeout` is raised inside the run after this long; None for none
    result_ttl:    how long its results are kept; 0 keeps none, None is the queue's
    process:       run a `def` task in a process of its own, which is killed on timeout or cancel
    """

    lane: str = ""
    retry: Retry = Retry()
    timeout: float | None = 300.0
    soft_timeout: float | None = None
    result_ttl: float | None = None
    process: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("timeout", "soft_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= LONGEST_S:
                raise ConfigError(f"{name}={value}: seconds above 0, or None for no limit")
        if self.soft_timeout and self.timeout and self.soft_timeout >= self.timeout:
            raise ConfigError(f"soft_timeout={self.soft_timeout} must be below timeout={self.timeout}")
        if self.result_ttl is not None and not 0 <= self.result_ttl <= LONGEST_S:
            raise ConfigError("result_ttl must be from 0 seconds, which keeps no results, to 100 years")


class CallOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What one enqueue changes. Times are seconds.

    delay:       not before this long from now
    lane:        another lane than the task's
    job_id:      an id of your own: while such a job is live, dead-lettered or its result kept, enqueueing again
                 returns that job
    expires:     no run, first or again, begins later than this from now: it is dead-lettered as expired
    unique:      a key that one job at a time may hold; enqueueing again returns the job that holds it
    unique_ttl:  how long it is held at most; released when the job ends
    timeout, soft_timeout, result_ttl: instead of the task's
    tags:        words to find the job by
    """

    delay: float = 0.0
    lane: str | None = None
    job_id: str | None = None
    expires: float | None = None
    unique: str | None = None
    unique_ttl: float = 3600.0
    timeout: float | None = None
    soft_timeout: float | None = None
    result_ttl: float | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("delay", "expires", "result_ttl"):
            if not 0 <= (getattr(self, name) or 0) <= LONGEST_S:
                raise ConfigError(f"{name}={getattr(self, name)}: seconds from 0 to 100 years")
        for name in ("timeout", "soft_timeout", "unique_ttl"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= LONGEST_S:
                raise ConfigError(f"{name}={value}: seconds above 0, up to 100 years")

    @property
    def overrides(self) -> codec.Overrides | None:
        """What of this the worker needs to know; None when it is nothing."""
        if self == _PLAIN:
            return None
        return codec.Overrides(
            timeout=self.timeout,
            soft_timeout=self.soft_timeout,
            result_ttl=self.result_ttl,
            unique=self.unique,
            tags=tuple(self.tags) or None,
        )


_PLAIN = CallOptions()

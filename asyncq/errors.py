"""Every error asyncq raises, in one tree.

AsyncqError
├── ConfigError            a setting, URL or name that cannot be used; also a ValueError
├── ServerUnavailable      no server answers; also a ConnectionError
│   └── EmbeddedUnavailable   no server configured and none could be started
├── ServerRefused          the server answers and refuses (password, memory, a key of another type, ACL)
├── TaskError              a task that cannot be registered; also a TypeError
│   └── UnknownTask           a name nobody registered
├── ArgumentError          arguments that do not fit the task's signature; also a TypeError
├── PayloadTooLarge        arguments or a result larger than the limit; also a ValueError
├── JobNotFound            nothing is known of this id (never enqueued, or its result expired)
├── JobNotEnded            result() waited as long as it was allowed to; also a TimeoutError
├── JobEnded               the job ended without a value
│   ├── JobFailed             it raised on its last attempt, or was dead-lettered
│   ├── JobCancelled          somebody cancelled it
│   └── JobExpired            it was not started in time
└── TaskSignal             raised *by* a task, to say what is to become of it
    ├── RetryLater            run me again after a delay
    ├── Reject                dead-letter me now, with this reason
    └── SoftTimeout           raised *in* a task that passed its soft timeout
"""

from __future__ import annotations

from asyncq.clock import LONGEST_S

__all__ = [
    "ArgumentError",
    "AsyncqError",
    "ConfigError",
    "EmbeddedUnavailable",
    "JobCancelled",
    "JobEnded",
    "JobExpired",
    "JobFailed",
    "JobNotEnded",
    "JobNotFound",
    "PayloadTooLarge",
    "Reject",
    "RetryLater",
    "ServerRefused",
    "ServerUnavailable",
    "SoftTimeout",
    "TaskError",
    "TaskSignal",
    "UnknownTask",
]


class AsyncqError(Exception):
    """Everything asyncq raises is one of these."""


class ConfigError(AsyncqError, ValueError):
    """A setting, URL or name that cannot be used. The message names it and says what would do."""


class ServerUnavailable(AsyncqError, ConnectionError):
    """No server answers at the address. Whether a command that was under way has run is unknown."""


class EmbeddedUnavailable(ServerUnavailable):
    """No server is configured and no embedded one could be started."""


class ServerRefused(AsyncqError):
    """The server answered and refused: wrong password, out of memory, a key of another type, missing ACL.

    Nothing was written.
    """


class TaskError(AsyncqError, TypeError):
    """A task that cannot be registered: its signature or options make no sense."""


class UnknownTask(TaskError):
    """No task of this name is registered with the queue."""


class ArgumentError(AsyncqError, TypeError):
    """The arguments do not fit the task's signature. Raised before anything is sent."""


class PayloadTooLarge(AsyncqError, ValueError):
    """Encoded arguments or result exceed the queue's `max_payload`. Raised before anything is sent."""


class JobNotFound(AsyncqError, LookupError):
    """Nothing is known of this id: it was never enqueued, or it ended and its result has expired."""


class JobNotEnded(AsyncqError, TimeoutError):
    """The job has not ended within the time given to `result()`. It goes on; ask again."""


class JobEnded(AsyncqError):
    """The job ended without a value."""


class JobFailed(JobEnded):
    """The job failed for good. `error` is `Type: message`, `traceback` the remote one, `attempts` how many ran."""

    def __init__(self, job_id: str, error: str, traceback: str = "", attempts: int = 0) -> None:
        self.job_id, self.error, self.traceback, self.attempts = job_id, error, traceback, attempts
        super().__init__(job_id, error, traceback, attempts)

    def __str__(self) -> str:
        remote = f"\n\nRemote traceback:\n{self.traceback}" if self.traceback else ""
        return f"job {self.job_id} failed after {self.attempts} attempt(s): {self.error}{remote}"


class JobCancelled(JobEnded):
    """The job was cancelled."""


class JobExpired(JobEnded):
    """The job was not started before its `expires`."""


class TaskSignal(AsyncqError):
    """Raised by a task to say what is to become of its job."""


class RetryLater(TaskSignal):
    """Run this job again after `delay` seconds. Counts as an attempt; never exceeds the task's attempts."""

    def __init__(self, delay: float, reason: str = "the task asked to run later") -> None:
        if not abs(delay) <= LONGEST_S:
            raise ConfigError(f"RetryLater(delay={delay}): seconds, up to 100 years")
        self.delay, self.reason = delay, reason
        super().__init__(reason)

    def __reduce__(self) -> tuple[type[RetryLater], tuple[float, str]]:
        return type(self), (self.delay, self.reason)


class Reject(TaskSignal):
    """Dead-letter this job now: no further attempt can succeed."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class SoftTimeout(TaskSignal):
    """The soft timeout has passed. Raised inside the task at its next await, so that it can still clean up."""

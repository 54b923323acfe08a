"""`Job`: what an enqueue returns. A handle, not the job: it can be made for any id, at any time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec

from asyncq import codec
from asyncq.errors import JobCancelled, JobEnded, JobExpired, JobFailed, JobNotFound
from asyncq.job import JobInfo

__all__ = ["Job"]

R = TypeVar("R")


class Home(Protocol):
    """What a handle asks of its queue."""

    name: str

    async def look(self, job_id: str) -> JobInfo | None: ...
    async def cancel(self, job_id: str) -> bool: ...
    async def ending(self, job_id: str, timeout: float | None) -> codec.Record | JobInfo: ...
    def decode_value(self, task: str, encoded: Any) -> Any: ...


class Job(Generic[R]):
    """A job of a queue.

    id:       its id
    created:  False when the enqueue found a job with this id or uniqueness key and returned that one
    """

    __slots__ = ("_decode", "created", "id", "queue")

    def __init__(
        self, queue: Home, job_id: str, decode: Callable[[Any], Any] | None = None, created: bool = True
    ) -> None:
        self.queue, self.id, self.created, self._decode = queue, job_id, created, decode

    def __repr__(self) -> str:
        return f"<Job {self.id} of queue {self.queue.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and (self.queue.name, self.id) == (other.queue.name, other.id)

    def __hash__(self) -> int:
        return hash((self.queue.name, self.id))

    async def result(self, timeout: float | None = None) -> R:
        """The value the job returned, as soon as it has; at most `timeout` seconds from now.

        The ending is pushed by the server, and looked up every few seconds besides.

        Raises:
            JobFailed: it failed for good; with the remote traceback.
            JobCancelled, JobExpired: it ended without running to its end.
            JobEnded: it returned what does not fit its annotation.
            JobNotFound: nothing is known of it: its result has expired, or its task keeps none.
            JobNotEnded: it has not ended within `timeout`; ask again.
        """
        ending = await self.queue.ending(self.id, timeout)
        if isinstance(ending, codec.Record):
            if ending.state == "cancelled":
                raise JobCancelled(f"job {self.id} was cancelled")
            return self._value(ending)
        if ending.state == "expired":
            raise JobExpired(f"job {self.id} expired: {ending.error}")
        raise JobFailed(self.id, ending.error, ending.traceback, ending.attempt)

    async def info(self) -> JobInfo:
        """Where the job is and what is known of it.

        Raises:
            JobNotFound: nothing is.
        """
        info = await self.queue.look(self.id)
        if info is None:
            raise JobNotFound(f"nothing is known of job {self.id}: never enqueued, or ended and its result expired")
        return info

    async def cancel(self) -> bool:
        """End the job: at once if it waits, as soon as its code stops if it runs.

        Returns whether there was anything to cancel. A dead letter is left where it is.
        """
        return await self.queue.cancel(self.id)

    def _value(self, ending: codec.Record) -> R:
        try:
            if self._decode is not None:
                return cast(R, self._decode(ending.value))
            return cast(R, self.queue.decode_value(ending.task, ending.value))
        except msgspec.DecodeError as error:
            raise JobEnded(
                f"job {self.id} returned what does not fit the annotation of {ending.task}: {error}. "
                "Its info() has the value as it is"
            ) from error

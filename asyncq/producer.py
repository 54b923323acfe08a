"""Sends jobs to one partition: many callers, one push at a time, each exactly once.

Calls that arrive while a push is under way leave together in the next one. A push carries this producer's id
and a rising sequence number, so when only its reply was lost it is repeated and the server answers what it
answered. One push at a time is what makes the last number enough.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from asyncq.clock import monotonic_s, now_ms
from asyncq.errors import ServerUnavailable
from asyncq.store import Push, Store, batch_length

__all__ = ["NewJob", "Producer", "Special"]

log = logging.getLogger("asyncq")


class Special(NamedTuple):
    """What makes a job more than plain; keys or ''."""

    delay_ms: int
    result: str
    unique: str
    unique_ms: int


class NewJob(NamedTuple):
    lane: int
    id: str
    job: bytes
    special: Special | None


class Producer:
    def __init__(self, store: Store, timeout_s: float) -> None:
        self._store, self._timeout_s = store, timeout_s
        self._id = secrets.token_urlsafe(12)
        self._sequence = 0
        self._turn = asyncio.Lock()
        self._waiting: list[tuple[NewJob, asyncio.Future[str | None]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._pushes: set[asyncio.Task[dict[int, str]]] = set()

    def send(self, job: NewJob) -> asyncio.Future[str | None]:
        """Put one job on the next push; the future holds None, or the id of the job that is in its way.

        A caller that stops waiting does not take its job back.
        """
        future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush(), name="asyncq producer")
        return future

    async def send_all(self, jobs: Sequence[NewJob]) -> dict[int, str]:
        """Send up to a batch as one push: position -> id in its way. Completes even if the caller is cancelled."""
        task = asyncio.create_task(self._push(jobs), name="asyncq producer")
        self._pushes.add(task)
        task.add_done_callback(self._pushes.discard)
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """Wait until everything that was given is sent, or known not to be."""
        while self._flusher is not None or self._pushes:
            under_way = [*self._pushes, *([self._flusher] if self._flusher else [])]
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _flush(self) -> None:
        try:
            while self._waiting:
                length = batch_length(len(item[0].job) for item in self._waiting)
                batch, self._waiting = self._waiting[:length], self._waiting[length:]
                await self._deliver(batch)
        finally:
            self._flusher = None

    async def _deliver(self, batch: list[tuple[NewJob, asyncio.Future[str | None]]]) -> None:
        try:
            refused = await self._push([job for job, _ in batch])
        except BaseException as error:
            # Whatever it is, nobody may be left waiting.
            for _, future in batch:
                if not future.done():
                    future.set_exception(error) if isinstance(error, Exception) else future.cancel()
            if not isinstance(error, Exception):
                raise
            return
        for position, (_, future) in enumerate(batch):
            if not future.done():
                future.set_result(refused.get(position) if refused else None)

    async def _push(self, jobs: Sequence[NewJob]) -> dict[int, str]:
        push = Push(len(self._store.lanes))
        for lane, job_id, job, special in jobs:
            if special is None:
                push.add(lane, job_id, job)
            else:
                push.add_special(lane, job_id, job, *special)
        async with self._turn:
            self._sequence += 1
            return await self._until_answered(push)

    async def _until_answered(self, push: Push) -> dict[int, str]:
        deadline = monotonic_s() + self._timeout_s
        pause_s = 0.05
        while True:
            try:
                left_s = max(0.05, deadline - monotonic_s())
                return await self._store.enqueue(self._id, self._sequence, push, now_ms(), left_s)
            except ServerUnavailable as error:
                if monotonic_s() + pause_s > deadline:
                    raise ServerUnavailable(
                        f"no answer within {self._timeout_s:g} s for a push of {push.count} job(s): {error}. "
                        "It may have arrived or not; repeat it only with job ids of your own"
                    ) from error
                log.warning("push of %d job(s) to %s unanswered, repeating: %s", push.count, self._store.queue, error)
            await asyncio.sleep(pause_s * (0.5 + random.random() / 2))
            pause_s = min(pause_s * 2, 1.0)

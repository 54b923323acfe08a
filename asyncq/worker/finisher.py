"""Gathers outcomes and records them: one `finish` a turn, never one a job.

While one batch is on its way the next gathers, so batches grow with the load. A batch that was not answered
is sent again; what had been recorded the first time then counts as stale, which is as good.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import msgspec

from asyncq import codec
from asyncq.backoff import Retry
from asyncq.clock import monotonic_s, now_ms
from asyncq.errors import AsyncqError, ServerRefused
from asyncq.lifecycle import Cancelled, Dead, Deferred, Ending, Outcome, Retrying, Succeeded, decide, storable
from asyncq.store import Endings, batch_length
from asyncq.worker.delivery import Delivery
from asyncq.worker.outage import Outage
from asyncq.worker.sources import Source

__all__ = ["Finisher"]

log = logging.getLogger("asyncq.worker")

ERROR_CHARACTERS = 2_000
NO_RETRY = Retry(attempts=1)


class Finisher:
    """Takes outcomes from any number of attempts and records their endings in batches."""

    def __init__(self, worker: str, on_recorded: Callable[[], None]) -> None:
        self._worker, self._on_recorded = worker, on_recorded
        self._settled: list[tuple[Delivery, Ending]] = []
        self._some = asyncio.Event()
        self._outage = Outage("cannot record endings")
        self._one_turn = asyncio.Lock()
        self.succeeded = self.retried = self.dead = self.cancelled = self.stale = 0

    @property
    def waiting(self) -> int:
        """Endings that are not recorded yet."""
        return len(self._settled)

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        """Decide what becomes of a delivery and put it on the next batch."""
        delivery.settled = True
        retry = delivery.runner.retry if delivery.runner else NO_RETRY
        ending = decide(outcome, delivery.attempt, delivery.deferrals, retry, random.random())
        if not isinstance(ending, Succeeded):
            _log(delivery, ending)
        self._settled.append((delivery, ending))
        self._some.set()

    async def run(self) -> None:
        """Record endings for ever. Cancelled, it loses none: they stay until `flush`."""
        while True:
            await self._some.wait()
            async with self._one_turn:
                await self._turn()

    async def flush(self, within_s: float) -> bool:
        """Record everything that is settled, trying for so long; returns whether all was."""
        deadline = monotonic_s() + within_s
        while self._settled:
            try:
                async with asyncio.timeout(max(0.0, deadline - monotonic_s())), self._one_turn:
                    await self._turn()
            except TimeoutError:
                break
        return not self._settled

    async def _turn(self) -> None:
        """One batch. Its endings leave the list only when the server has answered."""
        batch = self._settled[: batch_length(map(_size, self._settled))]
        by_source: dict[Source, list[tuple[Delivery, Ending]]] = {}
        for item in batch:
            by_source.setdefault(item[0].source, []).append(item)
        try:
            done: list[tuple[Delivery, Ending]] = []
            for source, items in by_source.items():
                done += await self._record_or_split(source, items)
        except AsyncqError as error:
            self._outage.begin(error)
            await asyncio.sleep(self._outage.pause_s)
            return
        if len(done) == len(batch):
            del self._settled[: len(batch)]
            self._outage.end()
        else:
            # What was refused goes to the end of the line, so that the next batch is another one.
            finished = {id(delivery) for delivery, _ in done}
            refused = [item for item in batch if id(item[0]) not in finished]
            self._settled = self._settled[len(batch) :] + refused
            await asyncio.sleep(self._outage.pause_s)
        if not self._settled:
            self._some.clear()
        self._on_recorded()

    async def _record_or_split(
        self, source: Source, items: list[tuple[Delivery, Ending]]
    ) -> list[tuple[Delivery, Ending]]:
        """Record a batch; where the server refuses it, each ending alone, so that one cannot hold up the rest."""
        try:
            await self._record(source, items)
        except ServerRefused as error:
            self._outage.begin(error)
            if len(items) == 1:
                return []
            return [item for item in items if await self._record_or_split(source, [item])]
        return items

    async def _record(self, source: Source, items: list[tuple[Delivery, Ending]]) -> None:
        now = now_ms()
        endings = Endings(len(source.store.lanes))
        for delivery, ending in items:
            self._add(endings, source, delivery, ending, now)
        stale = set(await source.store.finish(endings, now))
        for delivery, ending in items:
            source.held[delivery.lane].pop(delivery.entry, None)
            if stale and (delivery.lane, delivery.entry) in stale:
                self.stale += 1
                log.warning("%r had been taken back before it ended here; its outcome does not count", delivery)
                continue
            self._count(ending)
            if isinstance(ending, Retrying | Deferred):
                source.timekeeper.note(ending.delay_ms)

    def _add(self, endings: Endings, source: Source, delivery: Delivery, ending: Ending, now: int) -> None:
        lane, entry, job_id = delivery.lane, delivery.entry, delivery.id
        match ending:
            case Succeeded(value):
                self._end(endings, source, delivery, "succeeded", msgspec.Raw(value), "", now)
            case Cancelled():
                self._end(endings, source, delivery, "cancelled", msgspec.Raw(codec.NIL), "cancelled", now)
            case Retrying(delay_ms):
                job = codec.with_counts(delivery.job, delivery.attempt + 1, 0)
                endings.retry(lane, entry, job_id, job, delay_ms, delivery.crashes)
                return
            case Deferred(delay_ms):
                job = codec.with_counts(delivery.job, delivery.attempt, delivery.deferrals + 1)
                endings.retry(lane, entry, job_id, job, delay_ms, delivery.crashes)
                return
            case Dead(reason, error, traceback):
                endings.bury(
                    lane,
                    entry,
                    job_id,
                    delivery.job,
                    reason,
                    storable(error)[:ERROR_CHARACTERS],
                    storable(traceback),
                    delivery.attempt,
                    delivery.crashes,
                    self._worker,
                )
        if delivery.body is not None and delivery.body.overrides is not None and delivery.body.overrides.unique:
            endings.free(source.store.keys.unique(delivery.body.overrides.unique), job_id)

    def _end(
        self,
        endings: Endings,
        source: Source,
        delivery: Delivery,
        state: str,
        value: msgspec.Raw,
        error: str,
        now: int,
    ) -> None:
        body, ttl_ms = delivery.body, delivery.result_ttl_ms
        if ttl_ms == 0:
            endings.end(delivery.lane, delivery.entry, delivery.id, state, b"", "", 0)
            return
        record = codec.Record(
            state,
            body.task,
            value,
            error,
            delivery.attempt,
            body.enqueued_ms,
            delivery.claimed_ms,
            now,
            self._worker,
        )
        key = source.store.keys.result(delivery.id.decode())
        endings.end(delivery.lane, delivery.entry, delivery.id, state, codec.encode(record), key, ttl_ms)

    def _count(self, ending: Ending) -> None:
        match ending:
            case Succeeded():
                self.succeeded += 1
            case Dead():
                self.dead += 1
            case Cancelled():
                self.cancelled += 1
            case _:
                self.retried += 1


def _log(delivery: Delivery, ending: Ending) -> None:
    match ending:
        case Retrying(delay_ms, error):
            log.warning(
                "%r failed (attempt %d), again in %.1f s: %r", delivery, delivery.attempt, delay_ms / 1000, error
            )
        case Deferred(delay_ms, error):
            log.warning("%r put off for %.1f s: %r", delivery, delay_ms / 1000, error)
        case Dead(reason, error, traceback):
            trace = _indented(traceback)
            log.error("%r dead-lettered (%s) after attempt %d: %r%s", delivery, reason, delivery.attempt, error, trace)
        case Cancelled():
            log.info("%r cancelled", delivery)


def _indented(traceback: str) -> str:
    """For the log: nothing that a job says can pass for a line of it, or move the cursor."""
    lines = [line if line.isprintable() else repr(line)[1:-1] for line in traceback.splitlines()]
    return "".join(f"\n  {line}" for line in lines)


def _size(item: tuple[Delivery, Ending]) -> int:
    ending = item[1]
    return len(ending.value) if isinstance(ending, Succeeded) else len(item[0].job)

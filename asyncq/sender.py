"""From calls to jobs in Redis: gives each an id and a frame, and sends it to its partition."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from asyncq import codec, ids
from asyncq.clock import now_ms
from asyncq.config import QueueSettings
from asyncq.producer import NewJob, Producer, Special
from asyncq.store import BATCH, Store, batch_length
from asyncq.task import Call

__all__ = ["Sender"]

Sent = tuple[str, bool]
"""The id of a job, and whether it is new: False when it was there already."""


class Sender:
    """Sends to all partitions of a queue, in turn; a job with an id or a uniqueness key goes where that belongs."""

    def __init__(self, settings: QueueSettings, stores: Sequence[Store]) -> None:
        self._settings = settings
        self._keys = [store.keys for store in stores]
        self._producers = [Producer(store, settings.enqueue_timeout) for store in stores]
        self._turn = 0

    async def aclose(self) -> None:
        """Wait until everything that was given is sent, or known not to be."""
        for producer in self._producers:
            await producer.aclose()

    async def send(self, call: Call[Any]) -> Sent:
        partition, new = self._new_job(call, now_ms(), None)
        in_the_way = await self._producers[partition].send(new)
        return in_the_way or new.id, in_the_way is None

    async def send_many(self, calls: Iterable[Call[Any]]) -> list[Sent]:
        """Send a batch at a time, all or nothing each; the next one is encoded while one is under way."""
        sent: list[Sent] = []
        iterator, kept = iter(calls), list[Call[Any]]()
        sending: asyncio.Task[None] | None = None
        try:
            while batch := _take_batch(iterator, kept):
                ready = self._new_jobs(batch)
                if sending is not None:
                    await sending
                sending = asyncio.create_task(self._send_batch(ready, sent), name="asyncq enqueue_many")
        finally:
            if sending is not None:
                await asyncio.shield(sending)
        return sent

    async def _send_batch(self, ready: list[tuple[int, NewJob]], sent: list[Sent]) -> None:
        by_partition: dict[int, list[int]] = {}
        for position, (partition, _) in enumerate(ready):
            by_partition.setdefault(partition, []).append(position)
        refused: dict[int, str] = {}
        for partition, positions in by_partition.items():
            found = await self._producers[partition].send_all([ready[position][1] for position in positions])
            refused.update({positions[at]: job_id for at, job_id in found.items()})
        for position, (_, new) in enumerate(ready):
            existing = refused.get(position)
            sent.append((existing or new.id, existing is None))

    def _new_jobs(self, batch: list[Call[Any]]) -> list[tuple[int, NewJob]]:
        now = now_ms()
        if self._settings.partitions > 1:
            return [self._new_job(call, now, None) for call in batch]
        fresh = ids.new_ids(len(batch), now)
        return [self._new_job(call, now, job_id) for call, job_id in zip(batch, fresh, strict=True)]

    def _new_job(self, call: Call[Any], now: int, fresh_id: str | None) -> tuple[int, NewJob]:
        options, task, settings = call.options, call.task, self._settings
        lane = settings.lane_number(options.lane or task.defaults.lane or settings.default_lane)
        partition, job_id = self._place(options.job_id, options.unique, now, fresh_id)
        overrides = options.overrides
        expires = now + round(options.expires * 1000) if options.expires is not None else 0
        job = codec.frame(codec.Body(task.name, msgspec.Raw(call.encoded), now, expires, overrides))
        if overrides is None:
            return partition, NewJob(lane, job_id, job, None)
        keys = self._keys[partition]
        special = Special(
            round(options.delay * 1000),
            keys.result(job_id) if options.job_id is not None else "",
            keys.unique(options.unique) if options.unique else "",
            round(options.unique_ttl * 1000),
        )
        return partition, NewJob(lane, job_id, job, special)

    def _place(self, chosen_id: str | None, unique: str | None, now: int, fresh_id: str | None) -> tuple[int, str]:
        """The partition of a job, and its id."""
        partitions = self._settings.partitions
        if chosen_id is not None:
            return ids.partition_of(ids.check_job_id(chosen_id), partitions), chosen_id
        if partitions == 1:
            return 0, fresh_id or ids.new_ids(1, now)[0]
        if unique:
            partition = ids.partition_of(unique, partitions)
        else:
            partition = self._turn = (self._turn + 1) % partitions
        return partition, ids.new_ids(1, now, f"~{partition}")[0]


def _take_batch(calls: Iterator[Call[Any]], kept: list[Call[Any]]) -> list[Call[Any]]:
    """The next batch; what was read and does not fit any more is kept for the one after."""
    kept += islice(calls, BATCH - len(kept))
    length = batch_length(len(call.encoded) for call in kept)
    batch = kept[:length]
    del kept[:length]
    return batch

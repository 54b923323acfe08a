"""Dead letters of a whole queue: found by what is known of them, given another life, or forgotten."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

import msgspec

from asyncq import codec, ids
from asyncq.clock import now_ms
from asyncq.monitor import DeadLetter
from asyncq.queue import Queue
from asyncq.store import BATCH

__all__ = ["DeadFilter", "find", "purge", "replay"]

Act = Callable[[Queue, int, Sequence[DeadLetter]], Awaitable[int]]


class DeadFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters are meant; everything that is given must hold.

    error:  a part of `Type: message`, in any case of letters
    """

    ids: tuple[str, ...] = ()
    task: str = ""
    error: str = ""
    reason: str = ""

    def covers(self, letter: DeadLetter) -> bool:
        info = letter.info
        return (
            (not self.ids or info.id in self.ids)
            and self.task in ("", info.task)
            and self.reason in ("", info.reason)
            and self.error.lower() in info.error.lower()
        )


async def find(
    queue: Queue, which: DeadFilter, *, limit: int | None = None, oldest_first: bool = False
) -> AsyncGenerator[tuple[int, DeadLetter], None]:
    """Partition and letter of each that is meant, latest first unless asked otherwise; partition after partition."""
    count = 0
    for number, monitor in enumerate(queue.monitors):
        if which.ids:
            letters = _these(await monitor.dead_letters_of(which.ids))
        else:
            letters = monitor.dead_letters(oldest_first=oldest_first)
        async with aclosing(letters):
            async for letter in letters:
                if limit is not None and count >= limit:
                    return
                if which.covers(letter):
                    count += 1
                    yield number, letter


async def _these(letters: list[DeadLetter]) -> AsyncGenerator[DeadLetter, None]:
    for letter in letters:
        yield letter


async def replay(queue: Queue, which: DeadFilter, *, limit: int | None = None) -> int:
    """Put dead letters back into their lanes, oldest first, attempts and crashes at 0; returns how many.

    Each goes back once, however many people replay at the same time. A letter of a lane that the queue no longer
    has goes to the default lane; one without a readable id gets a new id.
    """
    return await _in_batches(queue, which, limit, _revive)


async def purge(queue: Queue, which: DeadFilter, *, limit: int | None = None) -> int:
    """Forget dead letters for good; returns how many."""
    return await _in_batches(queue, which, limit, _forget)


async def _in_batches(queue: Queue, which: DeadFilter, limit: int | None, act: Act) -> int:
    done = 0
    batches: dict[int, list[DeadLetter]] = {}
    async with aclosing(find(queue, which, limit=limit, oldest_first=True)) as found:
        async for partition, letter in found:
            batch = batches.setdefault(partition, [])
            batch.append(letter)
            if len(batch) == BATCH:
                done += await act(queue, partition, batches.pop(partition))
    for partition, batch in batches.items():
        done += await act(queue, partition, batch)
    return done


async def _revive(queue: Queue, partition: int, letters: Sequence[DeadLetter]) -> int:
    now = now_ms()
    suffix = f"~{partition}" if queue.settings.partitions > 1 else ""
    rows = []
    for letter in letters:
        info = letter.info
        lane = info.lane if info.lane in queue.settings.lanes else queue.settings.default_lane
        # The counters of bytes that are no job stand nowhere.
        job = letter.job if info.reason == "undecodable" else codec.with_counts(letter.job, 1, 0)
        job_id = info.id or ids.new_ids(1, now, suffix)[0]
        rows.append((letter.entry, job_id, job, queue.settings.lane_number(lane)))
    return await queue.stores[partition].revive(rows, now)


async def _forget(queue: Queue, partition: int, letters: Sequence[DeadLetter]) -> int:
    return await queue.stores[partition].purge([(letter.entry, letter.info.id) for letter in letters])

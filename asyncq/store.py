"""The only writer about jobs: one method for each script, on one partition of a queue.

A method turns values into KEYS and ARGV and a reply back into values. What the script promises stands in
its header in `lua/`; what the methods add is only types. Batches are given whole: 500 jobs at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from asyncq.errors import ConfigError, ServerRefused
from asyncq.keys import CATALOGUE, GROUP, Keys
from asyncq.link import Link

__all__ = ["BATCH", "BATCH_BYTES", "Claimed", "Endings", "Push", "Store", "batch_length"]

BATCH = 500
"""The most jobs one call takes, so that no script holds the server for more than a few ms."""

BATCH_BYTES = 4 << 20
"""About the most payload one call carries, for the same reason. A single job may be larger."""

REMEMBER_PRODUCER_S = 3600
"""How long a producer's last push is known; far longer than it tries to repeat one."""


LANES_OF_FINISH = 10
"""Where the lanes begin among the KEYS of `finish`."""


class Push:
    """Jobs on their way to a partition, in order."""

    __slots__ = ("args", "count", "keys", "lanes")

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.args: list[str | bytes] = []
        self.keys: list[str] = []
        self.count = 0

    def add(self, lane: int, job_id: str, job: bytes) -> None:
        """A job for the lane with this index."""
        self.args += (str(6 + lane), job_id, job)
        self.count += 1

    def add_special(
        self, lane: int, job_id: str, job: bytes, delay_ms: int, result: str, unique: str, unique_ms: int
    ) -> None:
        """A job that is delayed, or whose id or uniqueness key may be taken. `result`, `unique`: keys or ''."""
        route = f"{6 + lane} {delay_ms} {self._key(result)} {self._key(unique)} {max(1, unique_ms)}"
        self.args += (route, job_id, job)
        self.count += 1

    def _key(self, key: str) -> int:
        if not key:
            return 0
        self.keys.append(key)
        return 5 + 2 * self.lanes + len(self.keys)


class Claimed(NamedTuple):
    """What a claim brought. `rows` is flat: lane (1: the first asked for), entry id, id, job, crashes of each."""

    now_ms: int
    due_in_ms: int
    problem: str
    rows: list[Any]


class Endings:
    """What became of a batch of deliveries, on its way to `finish`."""

    __slots__ = ("_dead", "_ended", "_first", "_retried", "_uniques", "count", "keys")

    def __init__(self, lanes: int) -> None:
        self._first = LANES_OF_FINISH + lanes
        self._ended: list[Any] = []
        self._retried: list[Any] = []
        self._dead: list[Any] = []
        self._uniques: list[Any] = []
        self.keys: list[str] = []
        self.count = 0

    def end(self, lane: int, entry: bytes, job_id: bytes, state: str, record: bytes, key: str, ttl_ms: int) -> None:
        """Ended for good. `key` is where the record is kept for `ttl_ms`, or ''."""
        number = 0
        if key:
            number = self._first + len(self.keys)
            self.keys.append(key)
        self._ended += (LANES_OF_FINISH + lane, entry, job_id, state, record, number, ttl_ms)
        self.count += 1

    def retry(self, lane: int, entry: bytes, job_id: bytes, job: bytes, delay_ms: int, crashes: bytes) -> None:
        """To run again after a delay, as `job` with its counters advanced."""
        self._retried += (LANES_OF_FINISH + lane, entry, job_id, job, delay_ms, crashes)
        self.count += 1

    def bury(
        self,
        lane: int,
        entry: bytes,
        job_id: bytes,
        job: bytes,
        reason: str,
        error: str,
        traceback: str,
        attempts: int,
        crashes: bytes,
        worker: str,
    ) -> None:
        """To the dead letters."""
        self._dead += (LANES_OF_FINISH + lane, entry, job_id, job, reason, error, traceback, attempts, crashes, worker)
        self.count += 1

    def free(self, key: str, job_id: bytes) -> None:
        """Give up the uniqueness key that this job holds."""
        self._uniques += (self._first + len(self.keys), job_id)
        self.keys.append(key)

    def args(self) -> list[Any]:
        counts = (len(self._ended) // 7, len(self._retried) // 6, len(self._dead) // 10)
        return [*counts, *self._ended, *self._retried, *self._dead, *self._uniques]


def _claimed(reply: list[Any]) -> Claimed:
    return Claimed(reply[0], reply[1], reply[2].decode(errors="replace"), reply[3:])


def batch_length(sizes: Iterable[int]) -> int:
    """How many of the first items, of these sizes in bytes, make one batch: at least one, if there is any."""
    count = total = 0
    for size in sizes:
        total += size
        if count == BATCH or (count and total > BATCH_BYTES):
            break
        count += 1
    return count


class Store:
    """One partition of a queue. Safe to use from any number of coroutines of one event loop."""

    def __init__(self, link: Link, queue: str, lanes: tuple[str, ...], partition: int = 0) -> None:
        self.link, self.queue, self.lanes, self.partition = link, queue, lanes, partition
        self.keys = keys = Keys(queue, partition)
        self.lane_keys = [keys.lane(name) for name in lanes]
        self.bell_keys = [keys.bell(name) for name in lanes]
        self._finish_keys = [keys.index, keys.scheduled, keys.parked, keys.dead]
        self._finish_more = [keys.waiters, keys.progress, keys.cancelled, keys.trials, *self.lane_keys]

    # -- the nine verbs ---------------------------------------------------------------------------------

    async def enqueue(
        self, producer: str, sequence: int, push: Push, now_ms: int, timeout_s: float | None = None
    ) -> dict[int, str]:
        """Accept jobs; repeated with the same sequence it changes nothing. Position -> id in its way."""
        keys = self.keys
        fixed = [keys.producer(producer), keys.index, keys.scheduled, keys.parked, keys.stats(now_ms)]
        refused = await self.link.call(
            "enqueue",
            [*fixed, *self.lane_keys, *self.bell_keys, *push.keys],
            [sequence, REMEMBER_PRODUCER_S, len(self.lanes), *push.args],
            timeout_s,
        )
        return {int(refused[i]) - 1: refused[i + 1].decode() for i in range(0, len(refused), 2)}

    async def claim(self, consumer: str, wanted: int, lanes: Sequence[int], shares: Sequence[int]) -> Claimed:
        """Take up to `wanted` jobs of these lanes, in this order; the `shares` of each come before priority."""
        keys, args, _ = self._claim(consumer, wanted, lanes, shares)
        return _claimed(await self.link.call("claim", keys, args))

    async def wait_and_claim(
        self, consumer: str, wanted: int, lanes: Sequence[int], shares: Sequence[int], wait_s: float
    ) -> Claimed | None:
        """Wait up to `wait_s` for a bell of these lanes, then claim, in one trip.

        None if the wait was interrupted: then jobs may have been taken that nobody knows of.
        """
        keys, args, bells = self._claim(consumer, wanted, lanes, shares)
        reply = await self.link.wait_then_call(("BLPOP", *bells), wait_s, "claim", keys, args)
        return None if reply is None else _claimed(reply)

    def _claim(
        self, consumer: str, wanted: int, lanes: Sequence[int], shares: Sequence[int]
    ) -> tuple[list[str], list[Any], list[str]]:
        """KEYS and ARGV of a claim, and the bells."""
        bells = [self.bell_keys[lane] for lane in lanes]
        keys = [self.keys.paused, self.keys.scheduled, *[self.lane_keys[lane] for lane in lanes], *bells]
        return keys, [consumer, min(wanted, BATCH), *shares], bells

    async def renew(self, lane: int, consumer: str, entries: Sequence[bytes]) -> list[bytes]:
        """Keep leases; returns the entries that are still ours."""
        held: list[bytes] = await self.link.call("renew", [self.lane_keys[lane]], [consumer, *entries])
        return held

    async def finish(self, endings: Endings, now_ms: int) -> list[tuple[int, bytes]]:
        """Record endings; returns those no longer ours, as (lane, entry): nothing was done about them."""
        keys = [*self._finish_keys, self.keys.stats(now_ms), *self._finish_more, *endings.keys]
        stale = await self.link.call("finish", keys, [self.keys.ended, *endings.args()])
        return [(int(stale[i]) - LANES_OF_FINISH, stale[i + 1]) for i in range(0, len(stale), 2)]

    async def reclaim(
        self, lane: int, consumer: str, lease_ms: int, cursor: bytes, max_crashes: int, now_ms: int, count: int = 100
    ) -> tuple[bytes, int, int]:
        """Take back lost jobs of a lane: next cursor, how many went back, how many were buried."""
        keys = self.keys
        next_cursor, back, buried = await self.link.call(
            "reclaim",
            [
                self.lane_keys[lane],
                keys.index,
                keys.dead,
                self.bell_keys[lane],
                keys.stats(now_ms),
                keys.waiters,
                keys.progress,
                keys.cancelled,
                keys.trials,
            ],
            [consumer, lease_ms, cursor, count, max_crashes, keys.ended],
        )
        return next_cursor, back, buried

    async def release(self, lane: int, entries: Sequence[bytes]) -> int:
        """Hand back deliveries that will not run; returns how many were still ours."""
        back = 0
        for first in range(0, len(entries), BATCH):
            keys = [self.lane_keys[lane], self.keys.index, self.bell_keys[lane], self.keys.trials]
            back += await self.link.call("release", keys, entries[first : first + BATCH])
        return back

    async def promote(self, fallback: int, count: int = BATCH) -> tuple[int, int]:
        """Move due jobs to their lanes: how many, and ms until the next (-1: none is scheduled)."""
        keys = self.keys
        moved, due_in_ms = await self.link.call(
            "promote",
            [keys.scheduled, keys.parked, keys.index, *self.lane_keys, *self.bell_keys],
            [count, 4 + fallback],
        )
        return moved, due_in_ms

    async def cancel(self, job_id: str, record: bytes, ttl_ms: int, now_ms: int) -> str:
        """'cancelled', 'running' (its worker was told), 'dead', or '' when it has ended or is unknown."""
        keys = self.keys
        reply: bytes = await self.link.call(
            "cancel",
            [
                keys.index,
                keys.scheduled,
                keys.parked,
                keys.waiters,
                keys.stats(now_ms),
                keys.cancelled,
                keys.result(job_id),
                keys.progress,
                *self.lane_keys,
            ],
            [job_id, record, ttl_ms, keys.ended, keys.control],
        )
        return reply.decode()

    async def revive(self, letters: Iterable[tuple[bytes, str, bytes, int]], now_ms: int) -> int:
        """Dead letters (entry, id, job with attempts reset, lane) back to their lanes; how many were."""
        args = [word for entry, job_id, job, lane in letters for word in (entry, job_id, job, 4 + lane)]
        keys = self.keys
        revived: int = await self.link.call(
            "revive", [keys.dead, keys.index, keys.stats(now_ms), *self.lane_keys, *self.bell_keys], args
        )
        return revived

    # -- beside the verbs ---------------------------------------------------------------------------------

    async def watch(self, ids: Sequence[str]) -> list[bool]:
        """Have the endings of these jobs published; False for one that has ended or is unknown."""
        return [bool(live) for live in await self.link.call("watch", [self.keys.index, self.keys.waiters], ids)]

    async def report(self, progress: Sequence[tuple[bytes, bytes]]) -> int:
        """Keep and publish the progress of running jobs: (id, bytes) each."""
        words = [word for pair in progress for word in pair]
        live: int = await self.link.call("report", [self.keys.index, self.keys.progress], [self.keys.reported, *words])
        return live

    async def begin_trial(self, lane: int, consumer: str, entry: bytes, job_id: bytes) -> bool:
        """Note that this job is about to run alone; False if it is not ours any more."""
        return bool(
            await self.link.call("begin_trial", [self.lane_keys[lane], self.keys.trials], [consumer, entry, job_id])
        )

    async def purge(self, letters: Iterable[tuple[bytes, str]]) -> int:
        """Forget dead letters (entry, id) for good."""
        words = [word for pair in letters for word in pair]
        purged: int = await self.link.call("purge", [self.keys.dead, self.keys.index], words)
        return purged

    async def empty(self, lane: int) -> int:
        """Remove the jobs that wait in a lane or are scheduled for it; running ones stay."""
        keys, removed, seen = self.keys, 0, 0
        waiting = [self.lane_keys[lane], keys.index, keys.scheduled, keys.parked]
        while seen >= 0:
            some, seen = await self.link.call(
                "empty",
                [*waiting, keys.waiters, keys.progress, keys.cancelled],
                [BATCH, seen, keys.ended],
            )
            removed += some
        return removed

    async def retire(self, consumer: str) -> int:
        """Forget a worker that is gone, unless it still holds deliveries; returns how many lanes it does in."""
        held: int = await self.link.call("retire", [self.keys.workers, self.keys.paused, *self.lane_keys], [consumer])
        return held

    async def cease(self, consumer: str) -> None:
        """From now on nothing is claimed for this consumer, not even by a claim that is already under way."""
        await self.link.command("SADD", self.keys.paused, consumer)

    async def held(self, consumer: str) -> list[tuple[int, list[bytes]]]:
        """The entries each lane counts as this consumer's: (lane, entries)."""
        found = []
        for lane, key in enumerate(self.lane_keys):
            entries: list[bytes] = []
            try:
                rows = await self.link.command("XPENDING", key, GROUP, "-", "+", BATCH, consumer)
                while rows:
                    entries += [row[0] for row in rows]
                    after = b"(" + entries[-1]
                    full = len(rows) == BATCH
                    rows = await self.link.command("XPENDING", key, GROUP, after, "+", BATCH, consumer) if full else []
            except ServerRefused as error:
                # No group, or something else in its place: what we held is gone, and claim deals with the lane.
                if "NOGROUP" not in str(error) and "WRONGTYPE" not in str(error):
                    raise
            if entries:
                found.append((lane, entries))
        return found

    async def cancel_requests(self, ids: Sequence[bytes]) -> list[bytes]:
        """Those of these jobs that somebody asked to cancel."""
        if not ids:
            return []
        asked = await self.link.command("SMISMEMBER", self.keys.cancelled, *ids)
        return [job_id for job_id, wanted in zip(ids, asked, strict=True) if wanted]

    async def pause(self, lane: str | None = None) -> None:
        """Have nothing claimed from a lane, or from any. Survives restarts of everything but the data."""
        await self.link.command("SADD", self.keys.paused, self._lane_or_all(lane))

    async def resume(self, lane: str | None = None) -> None:
        """Undo `pause`; without a lane, of all lanes. Wakes a worker of each."""
        if lane is None:
            await self.link.command("DEL", self.keys.paused)
        else:
            await self.link.command("SREM", self.keys.paused, self._lane_or_all(lane))
        await self.ring()

    async def ring(self) -> None:
        """Wake one idle worker of each lane, for a token that may have been lost."""
        for bell in self.bell_keys:
            await self.link.command("LPUSH", bell, "1")

    def _lane_or_all(self, lane: str | None) -> str:
        if lane is not None and lane not in self.lanes:
            raise ConfigError(f"queue {self.queue} has no lane {lane!r}; it has {', '.join(self.lanes)}")
        return lane or "*"

    async def make_groups(self) -> None:
        """Give every lane its consumer group, at 0 so that nothing is skipped. Harmless when it is there."""
        for key in self.lane_keys:
            try:
                await self.link.command("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM")
            except ServerRefused as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def enter(self, worker: str, about: bytes) -> None:
        """Note that a worker is alive, with what it says of itself."""
        await self.link.command("HSET", self.keys.workers, worker, about)

    async def enlist(self, about: bytes) -> None:
        """Put the queue into the server's catalogue, so that tools find it."""
        await self.link.command("HSET", CATALOGUE, self.queue, about)

"""Reads one partition; writes nothing. What people and tools see of a queue comes from here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from asyncq import codec, ids, lifecycle
from asyncq.clock import now_ms
from asyncq.job import JobInfo
from asyncq.keys import GROUP, Keys
from asyncq.link import Link
from asyncq.workerinfo import WorkerInfo

__all__ = ["COUNTERS", "DeadLetter", "Monitor"]

COUNTERS = ("enqueued", "succeeded", "retried", "dead", "cancelled", "crashed", "revived")
"""What is counted for each minute."""

PAGE = 100
SCANNED = 1000
MOST_LOOKED_AT = 10_000
"""How many jobs of a state a filtered search looks at, at most."""
MOST_SCANS = 200
"""How often a search for results asks the server for more keys, `SCANNED` at a time; all keys of the database count."""


class DeadLetter(msgspec.Struct, frozen=True):
    """A dead letter as it lies there: `entry` and `job` are what it takes to revive or purge it."""

    entry: bytes
    job: bytes
    info: JobInfo


class Monitor:
    """One partition of a queue, seen from outside."""

    def __init__(self, link: Link, queue: str, lanes: tuple[str, ...], partition: int = 0) -> None:
        self.link, self.queue, self.lanes, self.partition = link, queue, lanes, partition
        self.keys = Keys(queue, partition)
        self.lane_keys = [self.keys.lane(name) for name in lanes]

    async def look(self, job_id: str) -> JobInfo | None:
        """One job, in one consistent glance; None when nothing is known of it."""
        keys = self.keys
        reply = await self.link.call(
            "look",
            [keys.index, keys.result(job_id), keys.scheduled, keys.parked, keys.dead, keys.progress, *self.lane_keys],
            [job_id],
        )
        if not reply:
            return None
        where, *rest = reply
        match where:
            case b"ended":
                return self.ended(job_id, rest[0])
            case b"dead":
                return self.dead_letter(rest[0], rest[1:])
        lane, crashes, job, at, progress, *held = rest
        info = self._live(job_id, lane, crashes, job)
        if progress:
            last = codec.decode_progress(progress)
            info.progress, info.meta = last.percent, last.meta
        if where == b"scheduled":
            self._parked(info, job, at)
        elif held:
            info.state, info.worker = "running", held[0].decode()
        return info

    def ended(self, job_id: str, record: bytes) -> JobInfo:
        """A job by the record it left."""
        ending = codec.decode_record(record)
        return JobInfo(
            id=job_id,
            queue=self.queue,
            state=ending.state,  # type: ignore[arg-type]
            task=ending.task,
            attempt=ending.attempts,
            enqueued_ms=ending.enqueued_ms or None,
            started_ms=ending.started_ms or None,
            ended_ms=ending.ended_ms,
            worker=ending.worker,
            value=codec.decode_any(ending.value),
            error=ending.error,
        )

    def dead_letter(self, entry: bytes, fields: Sequence[bytes]) -> JobInfo:
        """A job by its dead letter."""
        letter = dict(zip(fields[::2], fields[1::2], strict=True))
        info = self._live(letter[b"id"].decode(errors="replace"), letter[b"lane"], letter[b"crashes"], letter[b"job"])
        info.reason = letter[b"reason"].decode()
        info.state = lifecycle.state_of_dead(info.reason)
        info.error = letter[b"error"].decode(errors="replace")
        info.traceback = letter[b"traceback"].decode(errors="replace")
        info.worker = letter[b"worker"].decode()
        info.ended_ms = int(entry.partition(b"-")[0])
        return info

    def _live(self, job_id: str, lane: bytes, crashes: bytes, job: bytes) -> JobInfo:
        """What the job's own bytes say."""
        version, attempt, _ = codec.frame_head(job)
        info = JobInfo(
            id=job_id,
            queue=self.queue,
            state="queued",
            lane=lane.decode(),
            crashes=int(crashes) if crashes.isdigit() else 0,
            attempt=attempt,
            enqueued_ms=ids.made_ms(job_id),
        )
        if version == codec.VERSION:
            try:
                body = codec.decode_body(job)
                info.task, info.enqueued_ms = body.task, body.enqueued_ms
                info.expires_ms = body.expires_ms or None
                info.args = codec.decode_any(body.args)
                info.tags = (body.overrides.tags if body.overrides else None) or ()
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # A job whose bytes cannot be read is shown with what its entry says.
        return info

    async def counts(self) -> dict[str, Any]:
        """{"lanes": {name: {"queued", "running", "paused"}}, "scheduled", "dead", "paused"}."""
        keys, command = self.keys, self.link.command
        paused = {name.decode() for name in await command("SMEMBERS", keys.paused)}
        lanes = {}
        for name, key in zip(self.lanes, self.lane_keys, strict=True):
            length = await command("XLEN", key)
            groups = await command("XINFO", "GROUPS", key) if length else []
            running = sum(group[group.index(b"pending") + 1] for group in groups)
            lanes[name] = {
                "queued": max(0, length - running),
                "running": running,
                "paused": name in paused or "*" in paused,
            }
        return {
            "lanes": lanes,
            "scheduled": await command("ZCARD", keys.scheduled),
            "dead": await command("XLEN", keys.dead),
            "paused": "*" in paused,
        }

    # -- several ------------------------------------------------------------------------------------------

    async def jobs(self, state: lifecycle.State, *, lane: str = "", task: str = "", limit: int = 50) -> list[JobInfo]:
        """Up to `limit` jobs of a state: live ones as they come next, ended ones latest first.

        Bounded work: a search looks at so many jobs (`MOST_LOOKED_AT`) or keys and no further. The ended ones that
        succeeded or were cancelled are found by SCAN over the results kept, in no order until they are sorted.
        """
        match state:
            case "queued":
                source = self._queued(lane)
            case "running":
                source = self._running(lane)
            case "scheduled" | "retrying":
                source = self._waiting()
            case "failed" | "expired":
                source = self._buried()
            case _:
                found = [job async for job in self._results() if job.state == state and task in ("", job.task)]
                found = [job for job in found if lane in ("", job.lane)]
                return sorted(found, key=lambda job: job.ended_ms or 0, reverse=True)[:limit]
        found, seen = [], 0
        async with aclosing(source):
            async for job in source:
                if job.state == state and task in ("", job.task) and lane in ("", job.lane):
                    found.append(job)
                seen += 1
                if len(found) >= limit or seen >= MOST_LOOKED_AT:
                    break
        return found

    async def _queued(self, lane: str) -> AsyncGenerator[JobInfo, None]:
        for name, key in self._lanes(lane):
            after = await self._last_delivered(key)
            while entries := await self.link.command("XRANGE", key, after, "+", "COUNT", PAGE):
                for entry, fields in entries:
                    yield self._entry(name, entry, fields)
                after = f"({entries[-1][0].decode()}"

    async def _running(self, lane: str) -> AsyncGenerator[JobInfo, None]:
        """What was delivered and not acknowledged. An entry that ended between two commands is left out."""
        for name, key in self._lanes(lane):
            if await self._last_delivered(key) == "-":
                continue
            after = "-"
            while held := await self.link.command("XPENDING", key, GROUP, after, "+", PAGE):
                entries = dict(await self.link.command("XRANGE", key, held[0][0], held[-1][0], "COUNT", 2 * PAGE))
                for entry, consumer, *_ in held:
                    if entry in entries:
                        info = self._entry(name, entry, entries[entry])
                        info.state, info.worker = "running", consumer.decode()
                        yield info
                after = f"({held[-1][0].decode()}"

    async def _waiting(self) -> AsyncGenerator[JobInfo, None]:
        keys, first = self.keys, 0
        while rows := await self.link.command("ZRANGE", keys.scheduled, first, first + PAGE - 1, "WITHSCORES"):
            first += PAGE
            for job_id, due, about in zip(
                rows[::2], rows[1::2], await self.link.command("HMGET", keys.parked, *rows[::2]), strict=True
            ):
                if about is None:  # It went to its lane between the two commands.
                    continue
                lane, crashes, job = about.split(b" ", 2)
                info = self._live(job_id.decode(), lane, crashes, job)
                self._parked(info, job, due)
                yield info

    async def _buried(self) -> AsyncGenerator[JobInfo, None]:
        async with aclosing(self.dead_letters()) as letters:
            async for letter in letters:
                yield letter.info

    async def _results(self) -> AsyncGenerator[JobInfo, None]:
        prefix, cursor = self.keys.result(""), b"0"
        seen = 0
        for _ in range(MOST_SCANS):
            cursor, found = await self.link.command("SCAN", cursor, "MATCH", prefix + "*", "COUNT", SCANNED)
            if found:
                for key, record in zip(found, await self.link.command("MGET", *found), strict=True):
                    if record is not None:
                        seen += 1
                        try:
                            yield self.ended(key.decode().removeprefix(prefix), record)
                        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                            continue  # Written by a newer asyncq.
            if cursor == b"0" or seen >= MOST_LOOKED_AT:
                return

    async def dead_letters(self, *, oldest_first: bool = False) -> AsyncGenerator[DeadLetter, None]:
        """All dead letters that are there now, a page at a time; what dies meanwhile is not among them."""
        command, key = self.link.command, self.keys.dead
        newest = await command("XREVRANGE", key, "+", "-", "COUNT", 1)
        first, last = "-", newest[0][0].decode() if newest else "-"
        while newest:
            if oldest_first:
                page = await command("XRANGE", key, first, last, "COUNT", PAGE)
            else:
                page = await command("XREVRANGE", key, last, first, "COUNT", PAGE)
            if not page:
                return
            for entry, fields in page:
                yield self._letter(entry, fields)
            beyond = f"({page[-1][0].decode()}"
            first, last = (beyond, last) if oldest_first else (first, beyond)

    async def dead_letters_of(self, job_ids: Iterable[str]) -> list[DeadLetter]:
        """Those of these jobs that are dead letters."""
        wanted, found = list(job_ids), []
        if not wanted:
            return []
        for place in await self.link.command("HMGET", self.keys.index, *wanted):
            if place is not None and place.startswith(b"dead "):
                entry = place.removeprefix(b"dead ")
                found += await self.link.command("XRANGE", self.keys.dead, entry, entry)
        return [self._letter(entry, fields) for entry, fields in found]

    async def workers(self) -> list[WorkerInfo]:
        """The workers in the registry, by name. One that was lost stays for a while and `is_late`."""
        found = []
        for about in (await self.link.command("HGETALL", self.keys.workers))[1::2]:
            try:
                found.append(msgspec.json.decode(about, type=WorkerInfo))
            except msgspec.DecodeError:
                continue  # Of another version.
        return sorted(found, key=lambda worker: (worker.name, worker.started_ms))

    async def stats(self, minutes: int = 5) -> list[dict[str, int]]:
        """The counters of the last minutes, oldest first, the current one included: "minute" is its start in ms."""
        now, rows = now_ms(), []
        for ago in reversed(range(minutes)):
            then = now - ago * 60_000
            words = await self.link.command("HGETALL", self.keys.stats(then))
            counted = {words[i].decode(): int(words[i + 1]) for i in range(0, len(words), 2)}
            rows.append({"minute": then // 60_000 * 60_000, **{name: counted.get(name, 0) for name in COUNTERS}})
        return rows

    async def oldest_wait_s(self) -> float:
        """For how long the longest waiting job of any lane has been in it, by the server's clock; 0 when none waits."""
        first = []
        for key in self.lane_keys:
            after = await self._last_delivered(key)
            first += await self.link.command("XRANGE", key, after, "+", "COUNT", 1)
        if not first:
            return 0.0
        seconds, micros = await self.link.command("TIME")
        now = int(seconds) * 1000 + int(micros) // 1000
        return max(0.0, (now - min(int(entry.partition(b"-")[0]) for entry, _ in first)) / 1000)

    # -- parts --------------------------------------------------------------------------------------------

    def _lanes(self, lane: str) -> list[tuple[str, str]]:
        pairs = zip(self.lanes, self.lane_keys, strict=True)
        return [(name, key) for name, key in pairs if lane in ("", name)]

    async def _last_delivered(self, lane_key: str) -> str:
        """Where to read on for what waits; "-" when nothing has ever been delivered."""
        if not await self.link.command("EXISTS", lane_key):
            return "-"
        for group in await self.link.command("XINFO", "GROUPS", lane_key):
            about = dict(zip(group[::2], group[1::2], strict=True))
            if about[b"name"] == GROUP.encode():
                return f"({about[b'last-delivered-id'].decode()}"
        return "-"

    def _entry(self, lane: str, entry: bytes, fields: Sequence[bytes]) -> JobInfo:
        about = dict(zip(fields[::2], fields[1::2], strict=True))
        if b"id" not in about or b"job" not in about:
            return JobInfo(id="", queue=self.queue, state="queued", lane=lane, error="an entry asyncq did not write")
        crashes = about.get(b"crashes", b"0")
        return self._live(about[b"id"].decode(errors="replace"), lane.encode(), crashes, about[b"job"])

    def _parked(self, info: JobInfo, job: bytes, due: bytes) -> None:
        attempt, deferrals = codec.frame_head(job)[1:]
        info.state = "retrying" if attempt > 1 or deferrals else "scheduled"
        info.due_ms = int(float(due))

    def _letter(self, entry: bytes, fields: Sequence[bytes]) -> DeadLetter:
        job = dict(zip(fields[::2], fields[1::2], strict=True))[b"job"]
        return DeadLetter(entry, job, self.dead_letter(entry, fields))

"""Reads one partition; writes nothing. What people and tools see of a queue comes from here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from asyncq import codec, ids, lifecycle
from asyncq.job import JobInfo
from asyncq.keys import Keys
from asyncq.link import Link

__all__ = ["Monitor"]


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
            attempt, deferrals = codec.frame_head(job)[1:]
            info.state = "retrying" if attempt > 1 or deferrals else "scheduled"
            info.due_ms = int(float(at))
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
        info = self._live(letter[b"id"].decode(), letter[b"lane"], letter[b"crashes"], letter[b"job"])
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
            crashes=int(crashes or 0),
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
            except (msgspec.DecodeError, UnicodeDecodeError):
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

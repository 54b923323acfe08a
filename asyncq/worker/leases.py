"""Leases: a thread renews ours, a loop takes back what others lost.

Renewal has a thread and a connection of its own, so that a task that blocks the event loop does not lose the
jobs of this worker. The same thread notices the blocked loop and logs where it stands.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType

from redis import Redis, exceptions

from asyncq import connect, scripts
from asyncq.clock import monotonic_s, now_ms
from asyncq.errors import AsyncqError
from asyncq.store import BATCH
from asyncq.worker.delivery import Delivery
from asyncq.worker.outage import Outage
from asyncq.worker.sources import Source

__all__ = ["Renewer", "reclaim_for_ever"]

log = logging.getLogger("asyncq.worker")


class Renewer:
    """Keeps the leases of everything that is held; `lost` gets those that were taken back.

    A lease is renewed when it is a third of the visibility timeout old, looked at twice as often: so each may
    miss one renewal and still be ours.
    """

    def __init__(self, sources: Sequence[Source], url: str, blocked_after_s: float) -> None:
        self._sources, self._url, self._blocked_after_s = sources, url, blocked_after_s
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asyncq leases", daemon=True)
        self._tick_s = min(blocked_after_s / 2, *(s.settings.visibility_timeout / 6 for s in sources))
        self._asked_s: float | None = None
        self._reported = False
        self._outage = Outage("cannot renew leases")
        self.lag_s = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended; at once unless it waits for an answer."""
        self._stopped.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        redis = connect.sync_client(self._url, socket_timeout=min(5.0, max(0.5, self._tick_s * 2)))
        try:
            while not self._stopped.wait(self._tick_s):
                self._watch_loop()
                refused: list[exceptions.RedisError | OSError]
                try:
                    refused = [error for source in self._sources for error in self._renew(redis, source)]
                except (exceptions.RedisError, OSError) as error:
                    refused = [error]
                if refused:
                    self._outage.begin(connect.translate(refused[0], self._url))
                else:
                    self._outage.end()
        finally:
            redis.close()

    # -- leases -------------------------------------------------------------------------------------------

    def _renew(self, redis: Redis, source: Source) -> list[exceptions.ResponseError]:
        """Renew lane by lane, so that one that is refused costs the others nothing; returns the refusals."""
        refused = []
        old_s = monotonic_s() - source.settings.visibility_timeout / 3
        for lane, held in enumerate(source.held):
            # list() copies the dict in one step of the interpreter, so the loop may go on changing it.
            due = [delivery for delivery in list(held.values()) if delivery.leased_s < old_s]
            try:
                for first in range(0, len(due), BATCH):
                    self._renew_some(redis, source, lane, due[first : first + BATCH])
            except exceptions.ResponseError as error:
                refused.append(error)
        return refused

    def _renew_some(self, redis: Redis, source: Source, lane: int, due: list[Delivery]) -> None:
        script = scripts.load("renew")
        words: list[str | bytes] = [source.store.lane_keys[lane], source.consumer]
        words += [delivery.entry for delivery in due]
        asked_s = monotonic_s()
        try:
            ours = set(redis.evalsha(script.sha, 1, *words))
        except exceptions.NoScriptError:
            ours = set(redis.eval(script.source, 1, *words))
        for delivery in due:
            if delivery.entry in ours:
                delivery.leased_s = asked_s
        lost = [delivery for delivery in due if delivery.entry not in ours]
        if lost:
            self._loop.call_soon_threadsafe(self._give_up, source, lost)

    def _give_up(self, source: Source, lost: list[Delivery]) -> None:
        """In the loop: stop the code of jobs that were taken back. They run elsewhere."""
        for delivery in lost:
            # Recorded, or on its way to be: then its entry is gone because it is finished.
            if delivery.settled or source.held[delivery.lane].get(delivery.entry) is not delivery:
                continue
            log.error("%r was taken back: its lease ran out. It is stopped here", delivery)
            del source.held[delivery.lane][delivery.entry]
            delivery.halt("lost")

    # -- the event loop -----------------------------------------------------------------------------------

    def _watch_loop(self) -> None:
        """Ask the loop to turn, and say so when it has not for too long."""
        if self._asked_s is None:
            self._asked_s = monotonic_s()
            self._loop.call_soon_threadsafe(self._turn)
            return
        self.lag_s = monotonic_s() - self._asked_s
        if self.lag_s > self._blocked_after_s and not self._reported:
            self._reported = True
            frame = sys._current_frames().get(self._loop_thread)
            log.error(
                "the event loop has been blocked for %.1f s by %s; code that computes for long belongs into a "
                "`def` task. It stands at:\n%s",
                self.lag_s,
                self._culprit(),
                _stack(frame),
            )

    def _turn(self) -> None:
        if self._asked_s is not None:
            self.lag_s = monotonic_s() - self._asked_s
        self._asked_s, self._reported = None, False

    def _culprit(self) -> str:
        task = asyncio.current_task(self._loop)
        for source in self._sources:
            for held in source.held:
                for delivery in list(held.values()):
                    if task is not None and delivery.running is task:
                        return repr(delivery)
        return f"task {task.get_name()}" if task else "a callback"


def _stack(frame: FrameType | None) -> str:
    return "".join(traceback.format_stack(frame)) if frame else "(it has moved on)"


async def reclaim_for_ever(source: Source) -> None:
    """Take back the jobs of workers that were lost, lane after lane, some at a time.

    A whole sweep takes place at least once a second, or as often as the visibility timeout makes sense.
    """
    settings, store = source.settings, source.store
    lease_ms = round(settings.visibility_timeout * 1000)
    pause_s = max(0.05, min(1.0, settings.visibility_timeout / 4))
    outage = Outage("cannot take back lost jobs")
    while True:
        await asyncio.sleep(pause_s)
        problem: AsyncqError | None = None
        for lane in range(len(store.lanes)):
            try:
                cursor, back, buried = b"", 0, 0
                while cursor != b"0-0":
                    cursor, some, dead = await store.reclaim(
                        lane, source.consumer, lease_ms, cursor or b"0-0", settings.max_crashes, now_ms()
                    )
                    back, buried = back + some, buried + dead
            except AsyncqError as error:  # One lane that cannot be read does not keep the others from their jobs.
                problem = error
                continue
            if back or buried:
                log.warning(
                    "queue %s: took back %d lost job(s) of lane %s, %d of them poison",
                    source.queue,
                    back + buried,
                    store.lanes[lane],
                    buried,
                )
        if problem is None:
            outage.end()
        else:
            outage.begin(problem)
            await asyncio.sleep(outage.pause_s)

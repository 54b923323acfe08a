"""Moves scheduled jobs to their lanes when they are due.

Every worker keeps time. `promote` is atomic and bounded, so the first to come moves the jobs and the others
find nothing: no leader is needed, and none can be lost.
"""

from __future__ import annotations

import asyncio
import math

from asyncq.config import QueueSettings
from asyncq.errors import AsyncqError
from asyncq.store import Store
from asyncq.worker.outage import Outage

__all__ = ["Timekeeper"]

LONGEST_S = 1.0
"""How long to sleep at most: a job may be scheduled that nobody told us about."""


class Timekeeper:
    """Keeps time for one partition."""

    def __init__(self, store: Store, settings: QueueSettings) -> None:
        self._store, self._settings = store, settings
        self._wake = asyncio.Event()
        self._next_s = 0.0
        self._loop = asyncio.get_running_loop()

    def note(self, due_in_ms: int) -> None:
        """The next job is due in so many ms (-1: none), as far as somebody saw. Wakes us if that is news."""
        due_s = self._loop.time() + due_in_ms / 1000
        if due_in_ms >= 0 and due_s < self._next_s - 0.001:
            self._next_s = due_s
            self._wake.set()

    async def run(self) -> None:
        fallback = self._settings.lane_number(self._settings.default_lane)
        outage = Outage("cannot move scheduled jobs to their lanes")
        while True:
            self._next_s = math.inf  # A note that comes while we ask is kept.
            try:
                _, due_in_ms = await self._store.promote(fallback)
                outage.end()
            except AsyncqError as error:
                outage.begin(error)
                due_in_ms = round(outage.pause_s * 1000)
            pause_s = LONGEST_S if due_in_ms < 0 else min(LONGEST_S, due_in_ms / 1000)
            self._next_s = min(self._next_s, self._loop.time() + pause_s)
            while self._loop.time() < self._next_s:
                self._wake.clear()
                try:
                    async with asyncio.timeout_at(self._next_s):
                        await self._wake.wait()
                except TimeoutError:
                    break

"""Soft and hard timeouts, with one timer for all running jobs.

The timer stands at the earliest deadline. A job that starts with a later one costs a comparison; when the
timer fires, all running jobs are looked at once and it is set again. So timeouts are exact, and jobs that
end in time pay next to nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable

from asyncq.worker.delivery import Delivery

__all__ = ["Deadlines"]

log = logging.getLogger("asyncq.worker")

AGAIN_S = 5.0
"""Code that does not stop when cancelled is cancelled again this often."""


class Deadlines:
    def __init__(self, running: Callable[[], Iterable[Delivery]]) -> None:
        self._running = running
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.next_s = math.inf

    def add(self, delivery: Delivery) -> None:
        """Watch a delivery that has just been started."""
        first = min(delivery.deadline_s, delivery.soft_deadline_s)
        if first < self.next_s:
            self._set(first)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.next_s = at_s
        self._timer = self._loop.call_at(at_s, self._fire) if at_s < math.inf else None

    def _fire(self) -> None:
        now, earliest = self._loop.time(), math.inf
        self._timer = None
        for delivery in self._running():
            if delivery.settled:
                continue
            if delivery.soft_deadline_s <= now:
                self._interrupt(delivery)
            if delivery.deadline_s <= now:
                self._stop(delivery, now)
            earliest = min(earliest, delivery.deadline_s, delivery.soft_deadline_s)
        self._set(earliest)

    def _interrupt(self, delivery: Delivery) -> None:
        delivery.soft_deadline_s = math.inf
        delivery.context().timed_out = True
        log.warning("%r passed its soft timeout", delivery)
        if not delivery.stop and delivery.runner is not None and delivery.runner.interruptible:
            delivery.halt("soft timeout")

    def _stop(self, delivery: Delivery, now: float) -> None:
        if delivery.stop == "timeout":
            log.error("%r was told to stop and goes on: it swallows its cancellation", delivery)
        else:
            log.warning("%r passed its timeout of %g s", delivery, delivery.timeout_s)
        delivery.deadline_s = now + AGAIN_S
        delivery.halt("timeout")

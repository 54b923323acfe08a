"""Suspects run one at a time.

When a worker dies, nobody knows which of its jobs was to blame, so each counts a crash. A job that may not
crash again without being buried is therefore run on trial: alone among its kind, and noted as such in Redis
beforehand. Only a job whose worker is lost during its trial is buried; those that waited beside it are not.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from asyncq.errors import AsyncqError
from asyncq.worker.delivery import Delivery
from asyncq.worker.outage import Outage

__all__ = ["Trials"]

log = logging.getLogger("asyncq.worker")


class Trials:
    """Begins suspects one after another; `begin` starts one."""

    def __init__(self, begin: Callable[[Delivery], None]) -> None:
        self._begin = begin
        self._waiting: deque[Delivery] = deque()
        self._some = asyncio.Event()
        self._over = asyncio.Event()
        self._on_trial: Delivery | None = None

    @staticmethod
    def suspects(delivery: Delivery) -> bool:
        """Whether the next crash would bury this job."""
        return delivery.crash_count >= max(1, delivery.source.settings.max_crashes - 1)

    def put(self, delivery: Delivery) -> None:
        self._waiting.append(delivery)
        self._some.set()

    def ended(self, delivery: Delivery) -> None:
        """An attempt has ended; if it was the trial, the next may begin."""
        if delivery is self._on_trial:
            self._on_trial = None
            self._over.set()

    async def run(self) -> None:
        """Hold trials for ever. Cancelled, it leaves the waiting ones in the worker's hands, to be handed back."""
        outage = Outage("cannot note a trial")
        while True:
            while not self._waiting:
                self._some.clear()
                await self._some.wait()
            delivery = self._waiting[0]
            if not delivery.stop:  # Else it was taken back or cancelled while it waited, and will not run.
                try:
                    source = delivery.source
                    ours = await source.store.begin_trial(delivery.lane, source.consumer, delivery.entry, delivery.id)
                    outage.end()
                except AsyncqError as error:
                    outage.begin(error)
                    await asyncio.sleep(outage.pause_s)
                    continue
                job_id = delivery.id.decode(errors="replace")
                if ours:
                    log.warning("job %s is on trial: its worker was lost %d times", job_id, delivery.crash_count)
                else:
                    delivery.halt("lost")
            self._waiting.popleft()
            self._over.clear()
            self._on_trial = delivery
            self._begin(delivery)
            if self._on_trial is not None:
                await self._over.wait()

"""Where a worker's jobs come from: every partition of its queues, served in turn."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from asyncq import codec
from asyncq.clock import monotonic_s, now_ms
from asyncq.config import QueueSettings
from asyncq.errors import AsyncqError, ServerRefused
from asyncq.link import Link
from asyncq.store import BATCH, BATCH_BYTES, Claimed, Store
from asyncq.worker.delivery import Delivery
from asyncq.worker.outage import Outage
from asyncq.worker.timekeeper import Timekeeper

__all__ = ["Source", "Sources"]

log = logging.getLogger("asyncq.worker")

PROGRESS_S = 0.2
BELL_WAIT_S = 2.0
"""The longest an idle worker trusts the bell: a token can die with the worker that took it."""


class Source:
    """One partition, as this worker sees it.

    held:      for each lane, the deliveries in our hands by entry id: running, or waiting to be recorded
    progress:  what running jobs last said, not yet sent
    unsure:    a claim was not answered, and may have left jobs in our name
    most:      how many to claim at once, so that jobs as large as the last ones do not come in too large a reply
    """

    def __init__(self, store: Store, settings: QueueSettings, consumer: str, lanes: Sequence[int]) -> None:
        self.store, self.settings, self.consumer = store, settings, consumer
        self.queue = store.queue
        self.serves = list(lanes)
        self.held: list[dict[bytes, Delivery]] = [{} for _ in store.lanes]
        self.progress: dict[bytes, bytes] = {}
        self.unsure = False
        self.most = BATCH
        self.timekeeper = Timekeeper(store, settings)
        self._problem = ""
        self._shares = [settings.shares.get(store.lanes[lane], 0.0) for lane in lanes]
        self._credit = [0.0] * len(lanes)
        self._no_shares = [0] * len(lanes)

    def report(self, job_id: str, percent: float, meta: dict[str, Any]) -> None:
        """Note the progress of a job; from any thread."""
        try:
            self.progress[job_id.encode()] = codec.encode(codec.Progress(percent, meta, now_ms()))
        except (TypeError, ValueError, OverflowError) as error:
            log.warning("job %s: its progress cannot be sent: %s", job_id, error)

    def deliveries(self) -> list[Delivery]:
        return [delivery for held in self.held for delivery in held.values()]

    async def claim(self, wanted: int, wait_s: float = 0.0) -> list[Delivery]:
        """Claim, after handing back what an unanswered claim may have left in our name.

        With `wait_s`, wait so long for a bell first.
        """
        if self.unsure:
            await self.hand_back_unknown()
        shares = self._share_out(wanted)
        self.unsure = True
        claimed: Claimed | None
        if wait_s:
            claimed = await self.store.wait_and_claim(self.consumer, wanted, self.serves, shares, wait_s)
        else:
            claimed = await self.store.claim(self.consumer, wanted, self.serves, shares)
        if claimed is None:  # Interrupted, and so still unsure.
            return []
        self.unsure = False
        self.timekeeper.note(claimed.due_in_ms)
        if claimed.problem != self._problem:
            self._problem = claimed.problem
            if claimed.problem:
                log.error("queue %s: a lane cannot be read: %s. The others go on", self.queue, claimed.problem)
        rows, now = claimed.rows, monotonic_s()
        if rows:
            self.most = max(1, min(BATCH, BATCH_BYTES * len(rows) // 5 // (1 + sum(map(len, rows[3::5])))))
        deliveries = []
        for i in range(0, len(rows), 5):
            turn, entry = rows[i] - 1, rows[i + 1]
            lane = self.serves[turn]
            delivery = Delivery(self, lane, entry, rows[i + 2], rows[i + 3], rows[i + 4], claimed.now_ms, now)
            self.held[lane][entry] = delivery
            deliveries.append(delivery)
            if self._shares[turn]:
                self._credit[turn] -= 1
        return deliveries

    def _share_out(self, wanted: int) -> list[int]:
        """How many of these each lane may have out of its reserved share.

        A share grows with every claim and is spent by what the lane gets, so that 0.1 means one job in ten
        even where claims are of one job each. It is capped at a batch, so a quiet lane saves up no burst.
        """
        if not any(self._shares):
            return self._no_shares
        for turn, share in enumerate(self._shares):
            self._credit[turn] = max(-1.0, min(self._credit[turn] + share * wanted, max(1.0, share * BATCH)))
        return [int(max(0.0, credit)) for credit in self._credit]

    async def hand_back_unknown(self) -> None:
        """Release entries that Redis counts as ours and we know nothing of: a claim's reply was lost."""
        for lane, entries in await self.store.held(self.consumer):
            unknown = [entry for entry in entries if entry not in self.held[lane]]
            if unknown:
                back = await self.store.release(lane, unknown)
                log.warning("queue %s: handed back %d job(s) of an unanswered claim", self.queue, back)

    async def send_progress(self) -> None:
        words, self.progress = self.progress, {}
        pairs = list(words.items())
        for first in range(0, len(pairs), BATCH):
            await self.store.report(pairs[first : first + BATCH])

    async def release_all(self) -> None:
        """Hand back everything still held."""
        for lane, held in enumerate(self.held):
            if held:
                await self.store.release(lane, list(held))
                held.clear()

    async def settle_claims(self) -> None:
        """Nothing will be claimed any more: hand back what an interrupted wait may have brought, and its token."""
        try:
            if self.unsure:
                with suppress(ServerRefused):  # Out of memory; signing off looks again.
                    await self.store.cease(self.consumer)
                await self.hand_back_unknown()
                await self.store.ring()
                self.unsure = False
        except AsyncqError as error:
            log.debug("queue %s: to be tried again when the worker signs off: %s", self.queue, error)

    async def sign_off(self) -> None:
        """Hand back everything, known or not, and leave the books. May be repeated."""
        await self.release_all()
        await self.hand_back_unknown()
        while await self.store.retire(self.consumer):
            await self.hand_back_unknown()  # An interrupted claim ran after all.
        with suppress(ServerRefused):  # Out of memory. Then whoever is idle looks a little later.
            await self.store.ring()


class Sources:
    """All partitions together. One blocked connection waits for all their bells."""

    def __init__(
        self,
        sources: Sequence[Source],
        link: Link,
        stopping: asyncio.Event,
        on_exhausted: Callable[[], None],
        often_woken: bool,
    ) -> None:
        self.sources, self._link, self._stopping = list(sources), link, stopping
        self._often_woken = often_woken
        self._on_exhausted = on_exhausted
        self.exhausted = False
        self._first = 0
        self._outage = Outage("cannot claim jobs")
        self._bell_outage = Outage("cannot wait for jobs")
        self._woken = False

    async def claim(self, free: int) -> list[Delivery]:
        """Up to `free` deliveries; each call begins with another partition. Never cancelled while under way."""
        self.exhausted = False
        if free == 0:
            return []
        found: list[Delivery] = []
        self._first = (self._first + 1) % len(self.sources)
        for source in self.sources[self._first :] + self.sources[: self._first]:
            wanted = min(free - len(found), source.most)
            deliveries = await self._claim_from(source, wanted)
            if deliveries is None:
                return found
            found += deliveries
            if len(found) >= free or len(deliveries) == wanted:
                break
        else:
            self.exhausted = True
        return found

    async def wait_and_claim(self, free: int) -> list[Delivery]:
        """Wait until a bell rings, 2 s pass, or `wake`; then as `claim`.

        With one partition the claim goes along with the wait and is carried out by the server the moment the bell
        rings: a round trip less for a job that comes to an idle worker. Not where waits are often ended from here,
        for then it is not known what became of the claim.
        """
        self._woken = False
        self._on_exhausted()
        await asyncio.sleep(0)  # The jobs just started go first.
        if self._stopping.is_set() or self._woken or free == 0:
            return []
        if len(self.sources) > 1 or self._often_woken:
            await self._wait_for_bells()
            return await self.claim(free)
        source = self.sources[0]
        wanted = min(free, source.most)
        deliveries = await self._claim_from(source, wanted, BELL_WAIT_S)
        # After a wake nothing is known: the token, or jobs, may have been taken and lost on the way.
        self.exhausted = deliveries is not None and len(deliveries) < wanted and not source.unsure
        return deliveries or []

    async def _claim_from(self, source: Source, wanted: int, wait_s: float = 0.0) -> list[Delivery] | None:
        """None, after a pause, when the server cannot be used."""
        try:
            deliveries = await source.claim(wanted, wait_s)
        except AsyncqError as error:
            self._outage.begin(error)
            await self._pause(self._outage.pause_s)
            return None
        self._outage.end()
        return deliveries

    async def _wait_for_bells(self) -> None:
        bells = [source.store.bell_keys[lane] for source in self.sources for lane in source.serves]
        try:
            await self._link.wait_for("BLPOP", *bells, wait_s=BELL_WAIT_S)
        except AsyncqError as error:
            self._bell_outage.begin(error)
            await self._pause(self._bell_outage.pause_s)
        else:
            self._bell_outage.end()

    def wake(self) -> None:
        """End the wait. A token that was just taken may be lost: whoever stops rings again."""
        self._woken = True
        self._link.interrupt()

    async def _pause(self, seconds: float) -> None:
        """Wait, or until the worker stops."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def send_progress_for_ever(self) -> None:
        """Send the last word of each job that said something, a few times a second."""
        while True:
            await asyncio.sleep(PROGRESS_S)
            for source in self.sources:
                try:
                    await source.send_progress()
                except AsyncqError as error:
                    log.debug("progress was not sent: %s", error)

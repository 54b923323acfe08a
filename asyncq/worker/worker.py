"""Puts the parts of a worker together, starts them and stops them."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Literal, Self

import anyio
import msgspec

from asyncq.clock import now_ms
from asyncq.config import WorkerSettings
from asyncq.errors import AsyncqError, ConfigError
from asyncq.events import Listener
from asyncq.lifecycle import Outcome, Stopped
from asyncq.queue import Queue
from asyncq.worker.attempt import Runner, call, open_delivery, stopped_or_raised
from asyncq.worker.control import Control, stacks
from asyncq.worker.deadlines import Deadlines
from asyncq.worker.delivery import Delivery
from asyncq.worker.dispatch import dispatch
from asyncq.worker.finisher import Finisher
from asyncq.worker.heartbeat import clear_away_dead, resident_mib
from asyncq.worker.leases import Renewer, reclaim_for_ever
from asyncq.worker.outage import Outage
from asyncq.worker.process import ProcessPool
from asyncq.worker.slots import Slots
from asyncq.worker.sources import Source, Sources
from asyncq.worker.trials import Trials
from asyncq.workerinfo import WorkerInfo

__all__ = ["Worker"]

log = logging.getLogger("asyncq.worker")

Phase = Literal["running", "quiet", "draining", "stopping", "stopping now"]

UNWIND_S = 5.0
"""How long code may take to stop once it is cancelled, before the worker goes on without it."""

FLUSH_S = 5.0
"""How long a stopping worker tries to record what has ended."""


class Worker:
    """Runs the jobs of a queue in this event loop.

    `async with Worker(queue, concurrency=100)` runs it beside your own code; `await Worker(queue).run()` until
    it is stopped. Keywords are those of `WorkerSettings`.

    However it ends, no job is lost: what ran is recorded, the rest is handed back, and what a killed worker
    held is taken back by another one after the visibility timeout.
    """

    def __init__(self, queue: Queue, *, settings: WorkerSettings | None = None, **given: Any) -> None:
        unknown = given.keys() - set(WorkerSettings.__struct_fields__)
        if unknown:
            known = ", ".join(WorkerSettings.__struct_fields__)
            raise ConfigError(f"unknown setting {', '.join(sorted(unknown))}; there are {known}")
        self.settings = settings or WorkerSettings(**given)
        self.queue = queue
        self.name = self.settings.name
        self.consumer = f"{self.name}:{secrets.token_hex(6)}"
        lanes = self.settings.lanes or queue.settings.lanes
        self._lanes = sorted(queue.settings.lane_number(lane) for lane in lanes)
        self.phase: Phase = "running"
        self.started = asyncio.Event()
        self.used_up = False
        """It reached max_jobs or max_memory: another one may take its place."""
        self._all: list[Source] = []
        self._stopping = asyncio.Event()
        self._news = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._ran = False

    def __repr__(self) -> str:
        return f"<Worker {self.name} of queue {self.queue.name}>"

    # -- orders -------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Claim nothing more, let what runs end within the grace, hand back the rest. Twice: without grace."""
        if self.phase.startswith("stopping"):
            self._enter("stopping now")
        else:
            log.info("worker %s stops; %d job(s) are running", self.name, self.running)
            self._enter("stopping")

    def quiet(self) -> None:
        """Claim nothing more and finish what runs, however long it takes; then wait to be stopped."""
        if self.phase == "running":
            log.info("worker %s is quiet; %d job(s) are running", self.name, self.running)
            self._enter("quiet")

    def drain(self) -> None:
        """Claim nothing more, let what runs end, however long it takes, and stop."""
        if self.phase == "running":
            self._enter("draining")

    def dump_stacks(self) -> None:
        """Log where each running job stands."""
        log.warning("worker %s, running jobs:\n%s", self.name, stacks(self._deliveries()))

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._news.set()
        self._stopping.set()
        if self.started.is_set():
            self._slots.wake()
            self._sources.wake()

    @property
    def running(self) -> int:
        """Jobs running now."""
        return self._slots.taken if self.started.is_set() else 0

    # -- life ---------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        main = asyncio.create_task(self.run(), name=f"asyncq worker {self.name}")
        started = asyncio.create_task(self.started.wait())
        try:
            await asyncio.wait([main, started], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            main.cancel()
            await asyncio.wait([main])
            raise
        finally:
            started.cancel()
        if main.done():
            await main
        self._main = main
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._main is not None:
            self.stop()
            await self._main

    async def run(self) -> None:
        """Work until stopped, or in burst mode until nothing is left to do.

        Raises:
            ServerUnavailable, ServerRefused: at the start. Later outages are waited out.
            ConfigError: it has been run before.
        """
        if self._ran:
            raise ConfigError(f"worker {self.name} has been run before, and a worker runs once: make another one")
        self._ran = True
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.queue)
            if self.queue.lifespan is not None:
                await stack.enter_async_context(self.queue.lifespan(self.queue))
            self._pool = ProcessPool(self.queue.name)
            stack.push_async_callback(self._pool.aclose)
            self._build()
            for source, control in zip(self._all, self._controls, strict=True):
                await source.store.make_groups()
                stack.push_async_callback((await self._listen(source, control)).aclose)
            await self._work()

    def _build(self) -> None:
        queue, settings = self.queue, self.settings
        threads = anyio.CapacityLimiter(settings.concurrency)
        self._runners = {
            name: Runner(task, queue.settings, queue.middlewares, threads, self._pool)
            for name, task in queue.tasks.items()
        }
        self._all = [Source(store, queue.settings, self.consumer, self._lanes) for store in queue.stores]
        self._controls = [Control(source, self) for source in self._all]
        self._sources = Sources(self._all, queue.link, self._stopping, self._nothing_waits, settings.burst)
        self._slots = Slots(settings.concurrency, settings.max_jobs or None)
        self._finisher = Finisher(self.name, self._something_ended)
        self._deadlines = Deadlines(self._deliveries)
        self._trials = Trials(self._begin)
        self._renewer = Renewer(self._all, queue.link.url, settings.blocked_after)
        self._loop = asyncio.get_running_loop()
        self._started_ms = now_ms()
        # While a worker only works, nobody wants to know when a job ends.
        self._somebody_waits = settings.burst

    async def _listen(self, source: Source, control: Control) -> Listener:
        link, channel = self.queue.link, source.store.keys.control
        listener = Listener(link.redis, link.url, f"{channel}:{self.consumer}")
        await listener.open()
        await listener.hear(channel, control.obey)
        return listener

    async def _work(self) -> None:
        self._renewer.start()
        try:
            async with anyio.create_task_group() as beside:
                for source in self._all:
                    beside.start_soon(reclaim_for_ever, source, name="asyncq reclaim")
                    beside.start_soon(source.timekeeper.run, name="asyncq timekeeper")
                beside.start_soon(self._finisher.run, name="asyncq finisher")
                beside.start_soon(self._trials.run, name="asyncq trials")
                beside.start_soon(self._beat, name="asyncq heartbeat")
                beside.start_soon(self._sources.send_progress_for_ever, name="asyncq progress")
                self.started.set()
                log.info(
                    "worker %s serves queue %s, lanes %s, %d at once",
                    self.name,
                    self.queue.name,
                    ", ".join(self.queue.settings.lanes[lane] for lane in self._lanes),
                    self.settings.concurrency,
                )
                try:
                    await dispatch(self._sources, self._slots, self._start, self._stopping)
                    await self._wind_down()
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._leave()
                    beside.cancel_scope.cancel()
        finally:
            self._deadlines.close()
            self._renewer.stop()
            with anyio.CancelScope(shield=True):
                await self._sign_off()

    # -- one job ------------------------------------------------------------------------------------------

    def _start(self, delivery: Delivery) -> None:
        """Give a delivery a slot, and begin to run it or have it wait for its trial."""
        self._slots.take()
        if self._slots.budget == 0:
            log.info("worker %s has started its last job", self.name)
            self.used_up = True
            self.drain()
        if delivery.crashes != b"0" and self._trials.suspects(delivery):
            self._trials.put(delivery)
        else:
            self._begin(delivery)

    def _begin(self, delivery: Delivery) -> None:
        """Begin to run a delivery, or end it at once when it cannot run."""
        problem = open_delivery(delivery, self._runners, self._loop.time())
        if problem is not None:
            self._end(delivery, problem)
        elif delivery.stop:  # Cancelled or lost before it could begin.
            self._end(delivery, Stopped() if delivery.stop == "cancelled" else None)
        else:
            self._deadlines.add(delivery)
            delivery.running = self._loop.create_task(self._attempt(delivery))

    async def _attempt(self, delivery: Delivery) -> None:
        """One attempt: call, then settle what it came to. Its slot is taken until the code has really ended."""
        try:
            outcome = await call(delivery)
        except BaseException as error:  # asyncio throws a future's GeneratorExit past `call`, into this coroutine.
            outcome = stopped_or_raised(delivery, error)
        # The task's context holds the delivery: without this only the garbage collector could free either.
        delivery.running = None
        self._end(delivery, outcome)

    def _end(self, delivery: Delivery, outcome: Outcome | None) -> None:
        """Its code has ended, or will not run; without an outcome it is no longer ours to settle."""
        if outcome is not None:
            self._finisher.settle(delivery, outcome)
        self._slots.give_back()
        self._trials.ended(delivery)
        if self._somebody_waits:
            self._something_ended()

    # -- beside -------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Say that we live, carry out wishes to cancel, watch our size, clear away the dead."""
        outage, beats = Outage("cannot send heartbeats"), 0
        while True:
            try:
                for source, control in zip(self._all, self._controls, strict=True):
                    await source.store.enter(self.consumer, msgspec.json.encode(self.info()))
                    await control.look()
                    if beats % 6 == 0:
                        await clear_away_dead(source)
                outage.end()
            except AsyncqError as error:
                outage.begin(error)
            limit = self.settings.max_memory
            if limit and resident_mib() > limit and self.phase == "running":
                log.warning("worker %s has grown to %d MiB, over its limit of %d", self.name, resident_mib(), limit)
                self.used_up = True
                self.drain()
            beats += 1
            await asyncio.sleep(self.settings.heartbeat)

    def info(self) -> WorkerInfo:
        """What the registry shows of this worker."""
        finisher = self._finisher
        return WorkerInfo(
            name=self.name,
            consumer=self.consumer,
            pid=os.getpid(),
            state=self.phase,
            started_ms=self._started_ms,
            seen_ms=now_ms(),
            heartbeat_ms=round(self.settings.heartbeat * 1000),
            lanes=tuple(self.queue.settings.lanes[lane] for lane in self._lanes),
            concurrency=self.settings.concurrency,
            running=self.running,
            succeeded=finisher.succeeded,
            retried=finisher.retried,
            dead=finisher.dead,
            cancelled=finisher.cancelled,
            lag_ms=round(self._renewer.lag_s * 1000),
            memory_mib=resident_mib(),
        )

    # -- stopping -----------------------------------------------------------------------------------------

    def _nothing_waits(self) -> None:
        """The lanes are empty. In burst mode that is the end, unless what still runs makes more."""
        if self.settings.burst and self._slots.taken == 0 and self._finisher.waiting == 0:
            self.drain()

    def _something_ended(self) -> None:
        """A job ended or was recorded: whoever waits for that looks again."""
        if self._somebody_waits:
            self._news.set()
            if self.settings.burst:
                self._sources.wake()

    async def _wait_until(self, reached: Callable[[], bool], within_s: float | None = None) -> None:
        """Until it is so, asked again whenever a job ends or an order comes; at most so long."""
        self._somebody_waits = True
        try:
            async with asyncio.timeout(within_s):
                while not reached():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass

    async def _wind_down(self) -> None:
        """Nothing is claimed any more. Let what runs go on while quiet or draining, then end within the grace."""
        for source in self._all:
            await source.settle_claims()
        await self._wait_until(lambda: self.phase.startswith("stopping") or self._drained)
        await self._wait_until(lambda: self._slots.taken == 0 or self.phase == "stopping now", self.settings.grace)

    @property
    def _drained(self) -> bool:
        return self.phase == "draining" and self._slots.taken == 0

    async def _leave(self) -> None:
        """Stop the code that still runs, and record what has ended."""
        unfinished = [delivery for delivery in self._deliveries() if not delivery.settled]
        running = [delivery.running for delivery in unfinished if delivery.running is not None]
        for delivery in unfinished:  # Those that wait for their trial too: it must not begin any more.
            delivery.halt("handback")
        if running:
            log.warning("worker %s hands back %d job(s) that have not ended", self.name, len(running))
            await asyncio.wait(running, timeout=UNWIND_S)
        if not await self._finisher.flush(FLUSH_S):
            log.error(
                "worker %s could not record %d ending(s); these jobs will run again once their leases run out",
                self.name,
                self._finisher.waiting,
            )

    async def _sign_off(self) -> None:
        """Hand back the rest and leave the books, last of all: nothing else of us may write to them after this."""
        left, outage = list(self._all), Outage("cannot sign off")
        try:
            async with asyncio.timeout(FLUSH_S):
                while left:
                    try:
                        await left[0].sign_off()
                        del left[0]
                    except AsyncqError as error:
                        outage.begin(error)
                        left.append(left.pop(0))
                        await asyncio.sleep(outage.pause_s)
        except TimeoutError:
            log.error("worker %s could not sign off. Its jobs return when their leases run out", self.name)

    def _deliveries(self) -> list[Delivery]:
        return [delivery for source in self._all for delivery in source.deliveries()]

"""`Queue`: what an application declares, enqueues to and runs workers of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar, overload

import msgspec

from asyncq import codec, connect, ids
from asyncq.backoff import Retry
from asyncq.clock import now_ms
from asyncq.config import QueueSettings, WorkerSettings
from asyncq.errors import AsyncqError, ConfigError, JobNotEnded, JobNotFound, TaskError, UnknownTask
from asyncq.events import Listener
from asyncq.handle import Job
from asyncq.job import JobInfo, RunningJob
from asyncq.link import Link
from asyncq.monitor import Monitor
from asyncq.producer import NewJob, Producer, Special
from asyncq.store import BATCH, Store, batch_length
from asyncq.task import Call, CallOptions, Task, TaskOptions

if TYPE_CHECKING:
    from asyncq.worker import Worker

__all__ = ["Lifespan", "Middleware", "Queue"]

log = logging.getLogger("asyncq")

P = ParamSpec("P")
R = TypeVar("R")

Lifespan = Callable[["Queue"], AbstractAsyncContextManager[Any]]
Middleware = Callable[[RunningJob, Callable[[], Awaitable[Any]]], Awaitable[Any]]


class Register(Protocol):
    """What `@queue.task(...)` does to a function: its parameters stay, its result is what the job returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


def _take_batch(calls: Iterator[Call[R]], kept: list[Call[R]]) -> list[Call[R]]:
    """The next batch; what was read and does not fit any more is kept for the one after."""
    kept += islice(calls, BATCH - len(kept))
    length = batch_length(len(call.encoded) for call in kept)
    batch = kept[:length]
    del kept[:length]
    return batch


LOOK_AGAIN_S = 5.0
"""A published ending can be lost while reconnecting, so whoever awaits one looks this often besides."""


class Queue:
    """A named queue on one server.

    Declare it once at import time, open it with `async with` where it is used. Every keyword besides `url` and
    `lifespan` is a `QueueSettings` field.

    Raises:
        ConfigError: a setting that makes no sense.
    """

    def __init__(
        self,
        name: str,
        *,
        url: str | None = None,
        lanes: Iterable[str] = ("default",),
        shares: Mapping[str, float] | None = None,
        lifespan: Lifespan | None = None,
        **settings: Any,
    ) -> None:
        unknown = settings.keys() - set(QueueSettings.__struct_fields__)
        if unknown:
            known = ", ".join(QueueSettings.__struct_fields__)
            raise ConfigError(f"unknown setting {', '.join(sorted(unknown))}; there are url, lifespan, {known}")
        if isinstance(lanes, str):
            raise ConfigError(f"lanes={lanes!r}: a tuple of names is needed")
        self.settings = QueueSettings(name=name, lanes=tuple(lanes), shares=dict(shares or {}), **settings)
        self.name = name
        self.url = url
        self.lifespan = lifespan
        self.tasks: dict[str, Task[..., Any]] = {}
        self.middlewares: list[Middleware] = []
        self._opened = 0
        self._link: Link | None = None
        self._listener: Listener | None = None
        self._opening, self._listening = asyncio.Lock(), asyncio.Lock()
        self._stores: list[Store] = []
        self._monitors: list[Monitor] = []
        self._producers: list[Producer] = []
        self._turn = 0

    def __repr__(self) -> str:
        return f"<Queue {self.name}, {len(self.tasks)} tasks, lanes {', '.join(self.settings.lanes)}>"

    # -- declaring ----------------------------------------------------------------------------------------

    def task(
        self,
        name: str | None = None,
        *,
        lane: str = "",
        retry: Retry | int | None = None,
        timeout: float | None = 300.0,
        soft_timeout: float | None = None,
        result_ttl: float | None = None,
        process: bool = False,
    ) -> Register:
        """Register a function as a task; its name is the function's unless given.

        The options are those of `TaskOptions`; `retry` may be a plain number of attempts.

        Raises:
            TaskError: the name is taken, or the signature cannot cross as msgpack.
            ConfigError: an option that makes no sense.
        """
        if isinstance(retry, int):
            retry = Retry(attempts=retry)
        options = TaskOptions(
            lane=lane,
            retry=retry or Retry(),
            timeout=timeout,
            soft_timeout=soft_timeout,
            result_ttl=result_ttl,
            process=process,
        )
        if lane:
            self.settings.lane_number(lane)

        def register(function: Callable[..., Any]) -> Any:
            if not callable(function):
                raise TaskError(f"@queue.task() decorates functions, not {function!r}")
            called = str(name or getattr(function, "__name__", ""))
            if called in self.tasks:
                raise TaskError(f"queue {self.name} already has a task {called!r}; give this one another name")
            task: Task[..., Any] = Task(self, function, called, options, CallOptions())
            self.tasks[called] = task
            return task

        if name is not None and not isinstance(name, str):
            raise TaskError("write @queue.task(), with parentheses")
        return register

    def middleware(self, function: Middleware) -> Middleware:
        """Register `async def middleware(job, run)` around every attempt; `await run()` returns its value.

        The first registered is the outermost. An exception it raises counts as the task's.
        """
        self.middlewares.append(function)
        return function

    # -- opening ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        async with self._opening:
            if self._opened == 0:
                await self._open()
            self._opened += 1
        return self

    async def _open(self) -> None:
        redis, url = await connect.open_client(connect.address(self.url))
        self._link = link = Link(redis, url)
        name, lanes = self.name, self.settings.lanes
        partitions = range(self.settings.partitions)
        self._stores = [Store(link, name, lanes, n) for n in partitions]
        self._monitors = [Monitor(link, name, lanes, n) for n in partitions]
        self._producers = [Producer(store, self.settings.enqueue_timeout) for store in self._stores]
        about = {"lanes": lanes, "partitions": self.settings.partitions}
        try:
            await self._stores[0].enlist(msgspec.json.encode(about))
        except AsyncqError as error:
            log.warning("queue %s could not be entered into the catalogue: %s", name, error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened -= 1
        if self._opened == 0:
            for producer in self._producers:
                await producer.aclose()
            if self._listener is not None:
                await self._listener.aclose()
                self._listener = None
            await self.link.aclose()
            self._link = None

    @property
    def link(self) -> Link:
        """The open connection.

        Raises:
            ConfigError: the queue is not open.
        """
        if self._link is None:
            raise ConfigError(f"queue {self.name} is not open: use it inside `async with queue:`")
        return self._link

    @property
    def stores(self) -> list[Store]:
        """One for each partition, while the queue is open."""
        _ = self.link
        return self._stores

    def store(self, job_id: str) -> Store:
        """The store of the partition a job lives in."""
        return self.stores[ids.partition_of(job_id, self.settings.partitions)]

    @property
    def monitors(self) -> list[Monitor]:
        """One for each partition, while the queue is open."""
        _ = self.link
        return self._monitors

    def monitor(self, job_id: str) -> Monitor:
        """The monitor of the partition a job lives in."""
        return self.monitors[ids.partition_of(job_id, self.settings.partitions)]

    # -- enqueueing ---------------------------------------------------------------------------------------

    async def enqueue(self, call: Call[R]) -> Job[R]:
        """Make a job of a call; see `Task.enqueue`."""
        _ = self.link
        partition, new = self._new_job(call, now_ms(), None)
        in_the_way = await self._producers[partition].send(new)
        return Job(self, in_the_way or new.id, call.task, created=in_the_way is None)

    async def enqueue_many(self, calls: Iterable[Call[R]]) -> list[Job[R]]:
        """Make jobs of many calls, a batch at a time; returns them in order.

        Each batch is all or nothing. On an error, earlier batches are in Redis and later ones were not sent.

        Raises: as `Task.enqueue`.
        """
        _ = self.link
        jobs: list[Job[R]] = []
        iterator, kept = iter(calls), list[Call[R]]()
        sending: asyncio.Task[None] | None = None
        try:
            while batch := _take_batch(iterator, kept):
                # The next batch is encoded while this one is under way.
                ready = self._prepare(batch)
                if sending is not None:
                    await sending
                sending = asyncio.create_task(self._send_batch(ready, batch, jobs), name="asyncq enqueue_many")
        finally:
            if sending is not None:
                await asyncio.shield(sending)
        return jobs

    def _prepare(self, batch: list[Call[R]]) -> list[tuple[int, NewJob]]:
        now = now_ms()
        if self.settings.partitions > 1:
            return [self._new_job(call, now, None) for call in batch]
        return [
            self._new_job(call, now, job_id) for call, job_id in zip(batch, ids.new_ids(len(batch), now), strict=True)
        ]

    async def _send_batch(self, ready: list[tuple[int, NewJob]], batch: list[Call[R]], jobs: list[Job[R]]) -> None:
        by_partition: dict[int, list[int]] = {}
        for position, (partition, _) in enumerate(ready):
            by_partition.setdefault(partition, []).append(position)
        refused: dict[int, str] = {}
        for partition, positions in by_partition.items():
            found = await self._producers[partition].send_all([ready[position][1] for position in positions])
            refused.update({positions[at]: job_id for at, job_id in found.items()})
        for position, (_, new) in enumerate(ready):
            existing = refused.get(position)
            jobs.append(Job(self, existing or new.id, batch[position].task, created=existing is None))

    def _new_job(self, call: Call[Any], now: int, job_id: str | None) -> tuple[int, NewJob]:
        options, task = call.options, call.task
        lane = self.settings.lane_number(options.lane or task.defaults.lane or self.settings.default_lane)
        if options.job_id is not None:
            job_id = ids.check_job_id(options.job_id)
            partition = ids.partition_of(job_id, self.settings.partitions)
        elif self.settings.partitions > 1:
            partition = self._turn = (self._turn + 1) % self.settings.partitions
            if options.unique:
                partition = ids.partition_of(options.unique, self.settings.partitions)
            job_id = ids.new_ids(1, now, f"~{partition}")[0]
        else:
            partition, job_id = 0, job_id or ids.new_ids(1, now)[0]
        overrides = options.overrides
        expires = now + round(options.expires * 1000) if options.expires is not None else 0
        job = codec.frame(codec.Body(task.name, msgspec.Raw(call.encoded), now, expires, overrides))
        if overrides is None:
            return partition, NewJob(lane, job_id, job, None)
        keys = self._stores[partition].keys
        special = Special(
            round(options.delay * 1000),
            keys.result(job_id) if options.job_id is not None else "",
            keys.unique(options.unique) if options.unique else "",
            round(options.unique_ttl * 1000),
        )
        return partition, NewJob(lane, job_id, job, special)

    # -- looking and steering -----------------------------------------------------------------------------

    async def job(self, job_id: str) -> Job[Any]:
        """A handle for an id.

        Raises:
            JobNotFound: nothing is known of it.
        """
        handle: Job[Any] = Job(self, job_id)
        await handle.info()
        return handle

    async def cancel(self, job_id: str) -> bool:
        """See `Job.cancel`."""
        now = now_ms()
        record = codec.encode(
            codec.Record("cancelled", "", msgspec.Raw(b"\xc0"), "cancelled", 0, ids.made_ms(job_id) or 0, 0, now, "")
        )
        answer = await self.store(job_id).cancel(job_id, record, round(self.settings.result_ttl * 1000), now)
        return answer in ("cancelled", "running")

    async def ending(self, job_id: str, timeout: float | None) -> codec.Record | JobInfo:
        """The record of a job that ended, or its dead letter; waits for it.

        Raises:
            JobNotFound, JobNotEnded: as `Job.result`.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._await_ending(job_id)
        except TimeoutError:
            raise JobNotEnded(f"job {job_id} has not ended within {timeout:g} s; it goes on") from None

    async def _await_ending(self, job_id: str) -> codec.Record | JobInfo:
        store, listener = self.store(job_id), await self._open_listener()
        told: asyncio.Queue[bytes] = asyncio.Queue()
        channel = store.keys.ended + job_id
        await listener.hear(channel, told.put_nowait)
        try:
            while (await store.watch([job_id]))[0]:
                try:
                    async with asyncio.timeout(LOOK_AGAIN_S):
                        record = await told.get()
                except TimeoutError:
                    continue
                if record:
                    return codec.decode_record(record)
        finally:
            await listener.forget(channel, told.put_nowait)
        return await self._ended(job_id)

    async def _ended(self, job_id: str) -> codec.Record | JobInfo:
        record = await self.link.command("GET", self.store(job_id).keys.result(job_id))
        if record:
            return codec.decode_record(record)
        info = await self.monitor(job_id).look(job_id)
        if info is None or info.state not in ("failed", "expired"):
            raise JobNotFound(f"nothing is known of job {job_id}: it ended and no result is kept (any more)")
        return info

    async def _open_listener(self) -> Listener:
        async with self._listening:
            if self._listener is None:
                link = self.link
                listener = Listener(link.redis, link.url, self._stores[0].keys.ended)
                await listener.open()
                self._listener = listener
        return self._listener

    async def pause(self, lane: str | None = None) -> None:
        """Have workers claim nothing more from a lane, or from any; what runs goes on."""
        for store in self.stores:
            await store.pause(lane)

    async def resume(self, lane: str | None = None) -> None:
        """Undo `pause`; without a lane, of all."""
        for store in self.stores:
            await store.resume(lane)

    async def empty(self, lane: str | None = None) -> int:
        """Remove every job that waits or is scheduled, of a lane or of all; returns how many. Running ones stay."""
        lanes = range(len(self.settings.lanes)) if lane is None else [self.settings.lane_number(lane)]
        return sum([await store.empty(number) for store in self.stores for number in lanes])

    def find_task(self, name: str) -> Task[..., Any]:
        """A registered task.

        Raises:
            UnknownTask: there is none of this name.
        """
        try:
            return self.tasks[name]
        except KeyError:
            known = ", ".join(sorted(self.tasks)) or "none"
            raise UnknownTask(f"queue {self.name} has no task {name!r}; registered: {known}") from None

    # -- working ------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def worker(self, **settings: Any) -> AsyncIterator[Worker]:
        """Run a worker inside this process while the context is open, for example in a service's lifespan.

        Settings are those of `WorkerSettings`. Leaving the context stops it as SIGTERM stops a worker process.
        """
        from asyncq.worker import Worker

        async with Worker(self, settings=WorkerSettings(**settings)) as worker:
            yield worker

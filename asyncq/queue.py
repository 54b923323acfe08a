"""`Queue`: what an application declares, enqueues to and runs workers of."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar, overload

import msgspec

from asyncq import codec, connect, ids
from asyncq.backoff import Retry
from asyncq.clock import now_ms
from asyncq.config import QueueSettings
from asyncq.errors import AsyncqError, ConfigError, JobNotEnded, TaskError, UnknownTask
from asyncq.handle import Job
from asyncq.job import JobInfo, RunningJob
from asyncq.link import Link
from asyncq.monitor import Monitor
from asyncq.options import CallOptions, TaskOptions
from asyncq.sender import Sender
from asyncq.store import Store
from asyncq.task import AsyncTask, Call, Task
from asyncq.waiter import Waiter

if TYPE_CHECKING:
    from asyncq.worker import Worker

__all__ = ["Lifespan", "Middleware", "Queue"]

log = logging.getLogger("asyncq")

P = ParamSpec("P")
R = TypeVar("R")

Lifespan = Callable[["Queue"], AbstractAsyncContextManager[Any]]
Middleware = Callable[[RunningJob, Callable[[], Awaitable[Any]]], Awaitable[Any]]


_OTHER_LOOP = (
    "queue {0} is open in another event loop, and can be used only there. From a thread: "
    "anyio.from_thread.run(task.enqueue, ...) in a `def` task, asyncio.run_coroutine_threadsafe(...) elsewhere"
)


class Register(Protocol):
    """What `@queue.task(...)` does to a function: its parameters stay, its result is what the job returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._stores: list[Store] = []
        self._monitors: list[Monitor] = []

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
            is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
            kind = AsyncTask if is_async else Task
            task: Task[..., Any] = kind(self, function, called, options, CallOptions())
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
        self._enter_loop()
        async with self._opening:
            if self._link is None:
                await self._open()
            self._opened += 1
        return self

    def _enter_loop(self) -> None:
        """One event loop at a time; what one that has ended left open is gone with it."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        in_use = self._link is not None or self._opening.locked()
        if in_use and self._loop is not None and not self._loop.is_closed():
            raise ConfigError(_OTHER_LOOP.format(self.name))
        self._loop, self._opening, self._opened, self._link = loop, asyncio.Lock(), 0, None

    async def _open(self) -> None:
        redis, url = await connect.open_client(connect.address(self.url))
        self._link = link = Link(redis, url)
        name, lanes = self.name, self.settings.lanes
        partitions = range(self.settings.partitions)
        self._stores = [Store(link, name, lanes, n) for n in partitions]
        self._monitors = [Monitor(link, name, lanes, n) for n in partitions]
        self._sender = Sender(self.settings, self._stores)
        self._waiter = Waiter(self._stores[0])
        about = {"lanes": lanes, "partitions": self.settings.partitions}
        try:
            await self._stores[0].enlist(msgspec.json.encode(about))
        except AsyncqError as error:
            log.warning("queue %s could not be entered into the catalogue: %s", name, error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened -= 1
        async with self._opening:
            if self._opened == 0 and self._link is not None:  # Else somebody has come in meanwhile, or has closed it.
                link = self._link
                try:
                    await self._sender.aclose()
                    await self._waiter.aclose()
                finally:
                    self._link = None
                    await link.aclose()

    @property
    def link(self) -> Link:
        """The open connection.

        Raises:
            ConfigError: the queue is not open.
        """
        if self._link is None:
            raise ConfigError(f"queue {self.name} is not open: use it inside `async with queue:`")
        return self._link

    def _check_open(self) -> None:
        _ = self.link
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigError(_OTHER_LOOP.format(self.name))

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
        self._check_open()
        job_id, created = await self._sender.send(call)
        return Job(self, job_id, call.task.decode_value, created)

    async def enqueue_many(self, calls: Iterable[Call[R]]) -> list[Job[R]]:
        """Make jobs of many calls, a batch at a time; returns them in order.

        Each batch is all or nothing. On an error, earlier batches are in Redis and later ones were not sent.

        Raises: as `Task.enqueue`.
        """
        self._check_open()
        tasks: list[Task[..., Any]] = []

        def noted() -> Iterator[Call[R]]:
            for call in calls:
                tasks.append(call.task)
                yield call

        sent = await self._sender.send_many(noted())
        return [
            Job(self, job_id, task.decode_value, created) for (job_id, created), task in zip(sent, tasks, strict=True)
        ]

    # -- looking and steering -----------------------------------------------------------------------------

    async def job(self, job_id: str) -> Job[Any]:
        """A handle for an id.

        Raises:
            JobNotFound: nothing is known of it.
        """
        handle: Job[Any] = Job(self, job_id)
        await handle.info()
        return handle

    async def look(self, job_id: str) -> JobInfo | None:
        """Where a job is and what is known of it; None when nothing is."""
        self._check_open()
        return await self.monitor(job_id).look(job_id)

    def decode_value(self, task: str, encoded: Any) -> Any:
        """What a task of this name returned, in its type where the task is known here."""
        known = self.tasks.get(task)
        return known.decode_value(encoded) if known else codec.decode_any(encoded)

    async def cancel(self, job_id: str) -> bool:
        """See `Job.cancel`."""
        now, info = now_ms(), await self.look(job_id)
        if info is None:
            return False
        made_ms = info.enqueued_ms or 0
        nothing = msgspec.Raw(codec.NIL)
        record = codec.encode(codec.Record("cancelled", info.task, nothing, "cancelled", 0, made_ms, 0, now, ""))
        task = self.tasks.get(info.task)
        kept_s = (
            self.settings.result_ttl if task is None or task.defaults.result_ttl is None else task.defaults.result_ttl
        )
        answer = await self.store(job_id).cancel(job_id, record, round(kept_s * 1000), now)
        return answer in ("cancelled", "running")

    async def ending(self, job_id: str, timeout: float | None) -> codec.Record | JobInfo:
        """The record a job ended with, or its dead letter; waits for it.

        Raises:
            JobNotFound, JobNotEnded: as `Job.result`.
        """
        self._check_open()
        try:
            async with asyncio.timeout(timeout):
                return await self._waiter.ending(job_id, self.store(job_id), self.monitor(job_id))
        except TimeoutError:
            raise JobNotEnded(f"job {job_id} has not ended within {timeout:g} s; it goes on") from None

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

        async with Worker(self, **settings) as worker:
            yield worker

"""Runs `process=True` tasks in child processes that can be killed.

A child imports the module of the task, then answers one call after another: frames of four bytes of length
and msgpack, the arguments in, progress and an outcome out. It is kept for the next call; on timeout or
cancel it is killed. Nothing is pickled.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import msgspec

from asyncq import codec
from asyncq.errors import AsyncqError, Reject, RetryLater, SoftTimeout
from asyncq.job import current_job
from asyncq.task import Task

__all__ = ["ChildError", "ProcessPool", "Reply", "Request", "UnencodableValue"]

SOFT_TIMEOUT_SIGNAL = signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else None


class Request(msgspec.Struct, array_like=True):
    """One call for a child: where the task is, its encoded arguments, and what `current_job()` shows."""

    module: str
    file: str
    qualname: str
    args: msgspec.Raw
    id: str
    task: str
    queue: str
    lane: str
    attempt: int
    crashes: int
    enqueued_ms: int
    tags: tuple[str, ...]


class Reply(msgspec.Struct, array_like=True):
    """What a child says. kind: ready, progress, or the last word about a call: value, unencodable, error, later,
    reject, soft timeout.

    covered:  the task's Retry covers the error; only the child has the exception itself to ask about
    """

    kind: str
    value: msgspec.Raw = msgspec.Raw(codec.NIL)
    text: str = ""
    traceback: str = ""
    number: float = 0.0
    covered: bool = True


class ChildError(AsyncqError):
    """An exception raised in a child process, or the end of that process."""

    def __init__(self, text: str, traceback: str = "", covered: bool | None = None) -> None:
        self.covered = covered
        super().__init__(text)
        if traceback:
            self.add_note(f"In the child process:\n{traceback}")


class UnencodableValue(ChildError):
    """The task returned something that cannot be stored."""


class _Child:
    """A child process and its pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._length: int | None = None

    @classmethod
    async def start(cls) -> _Child:
        child = cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "asyncq.worker.child",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # Ctrl-C is for the worker, which decides what becomes of its children.
                start_new_session=True,
            )
        )
        try:
            # Until it is ready the signal of a soft timeout would end it.
            await child.receive()
        except BaseException:
            await asyncio.shield(child.end())
            raise
        return child

    async def send(self, request: Request) -> None:
        data = codec.encode(request)
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(len(data).to_bytes(4, "big") + data)
        await stdin.drain()

    async def receive(self) -> Reply:
        """The next thing it says. Interrupted, it may be called again and has missed nothing."""
        stdout = self.process.stdout
        assert stdout is not None
        try:
            if self._length is None:
                self._length = int.from_bytes(await stdout.readexactly(4), "big")
            data = await stdout.readexactly(self._length)
            self._length = None
            return msgspec.msgpack.decode(data, type=Reply)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            code = await self.process.wait()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            raise ChildError(f"the process that ran the task {how}") from error

    async def end(self) -> None:
        """Kill it, if it is there, and reap it."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        transport = getattr(self.process, "_transport", None)
        if transport is not None:
            transport.close()


class ProcessPool:
    """Idle children, to be used again. At most as many as jobs ran at once."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()

    async def run(self, task: Task[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the task in a child. Cancelled, the child is killed.

        Raises:
            ChildError: the task raised, or its process ended. RetryLater, Reject, SoftTimeout: as it raised them.
            UnencodableValue: what it returned cannot be stored.
        """
        request = _request(task, args, kwargs)
        child = self._take_idle() or await _Child.start()
        self._busy.add(child)
        try:
            reply = await self._converse(child, request)
        except BaseException:
            # It ended, or we were cancelled: by a timeout, by request, or because the worker stops. A child that
            # may still answer must not be used again.
            await asyncio.shield(child.end())
            raise
        finally:
            self._busy.discard(child)
        self._idle.append(child)
        match reply.kind:
            case "value":
                return codec.decode_any(reply.value)
            case "unencodable":
                raise UnencodableValue(reply.text)
            case "later":
                raise RetryLater(reply.number, reply.text)
            case "reject":
                raise Reject(reply.text)
            case "soft timeout":
                raise SoftTimeout(reply.text)
            case _:
                raise ChildError(reply.text, reply.traceback, reply.covered)

    def _take_idle(self) -> _Child | None:
        """A child that waits for a call; one that was killed meanwhile is left out."""
        while self._idle:
            child = self._idle.pop()
            if child.process.returncode is None:
                return child
        return None

    async def _converse(self, child: _Child, request: Request) -> Reply:
        """Ask, and hear what it says until its last word."""
        await child.send(request)
        while True:
            try:
                reply = await child.receive()
            except SoftTimeout:
                if SOFT_TIMEOUT_SIGNAL is not None and child.process.returncode is None:
                    child.process.send_signal(SOFT_TIMEOUT_SIGNAL)
                continue
            if reply.kind != "progress":
                return reply
            current_job().progress(reply.number, **codec.decode_any(reply.value))

    async def aclose(self) -> None:
        for child in [*self._idle, *self._busy]:
            await child.end()
        self._idle.clear()


def _request(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Request:
    job = current_job()
    module = sys.modules.get(task.__module__)
    return Request(
        module=task.__module__,
        file=getattr(module, "__file__", None) or "",
        qualname=task.__qualname__,
        args=msgspec.Raw(task.arguments.encode(args, kwargs)),
        id=job.id,
        task=task.name,
        queue=job.queue,
        lane=job.lane,
        attempt=job.attempt,
        crashes=job.crashes,
        enqueued_ms=job.enqueued_ms,
        tags=job.tags,
    )

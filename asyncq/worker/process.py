"""Runs `process=True` tasks in child processes that can be killed.

A child imports the module of the task, then answers one call after another: frames of four bytes of length
and msgpack, the arguments in, progress and an outcome out. It is kept for the next call; on timeout or
cancel it is killed. Nothing is pickled.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from asyncq import codec
from asyncq.errors import AsyncqError, Reject, RetryLater, SoftTimeout
from asyncq.job import current_job

if TYPE_CHECKING:
    from asyncq.task import Task

__all__ = ["ChildError", "ProcessPool", "Reply", "Request"]

SOFT_TIMEOUT_SIGNAL = signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else None
LARGEST_FRAME = 1 << 30


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
    """What a child says. kind: progress, value, error, later, reject, soft timeout."""

    kind: str
    value: msgspec.Raw = msgspec.Raw(b"\xc0")
    text: str = ""
    traceback: str = ""
    number: float = 0.0


class ChildError(AsyncqError):
    """An exception raised in a child process; its traceback is the child's."""

    def __init__(self, text: str, traceback: str) -> None:
        self.text, self.traceback = text, traceback
        super().__init__(text)

    def __str__(self) -> str:
        return f"{self.text}\n\nIn the child process:\n{self.traceback}"


class _Child:
    """A child process and its pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls) -> _Child:
        return cls(
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

    async def send(self, request: Request) -> None:
        data = codec.encode(request)
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(len(data).to_bytes(4, "big") + data)
        await stdin.drain()

    async def receive(self) -> Reply:
        stdout = self.process.stdout
        assert stdout is not None
        try:
            length = int.from_bytes(await stdout.readexactly(4), "big")
            return msgspec.msgpack.decode(await stdout.readexactly(length), type=Reply)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            code = await self.process.wait()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            raise ChildError(f"the process that ran the task {how}", "") from error

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
        """
        request = _request(task, args, kwargs)
        child = self._idle.pop() if self._idle else await _Child.start()
        self._busy.add(child)
        try:
            value = await self._converse(child, task, request)
        except (RetryLater, Reject, SoftTimeout):
            self._idle.append(child)
            raise
        except ChildError as error:
            if error.traceback:
                self._idle.append(child)
            else:
                await child.end()
            raise
        except BaseException:
            # Cancelled: by a timeout, by request, or because the worker stops.
            await asyncio.shield(child.end())
            raise
        else:
            self._idle.append(child)
            return value
        finally:
            self._busy.discard(child)

    async def _converse(self, child: _Child, task: Task[..., Any], request: Request) -> Any:
        await child.send(request)
        while True:
            try:
                reply = await child.receive()
            except SoftTimeout:
                if SOFT_TIMEOUT_SIGNAL is not None and child.process.returncode is None:
                    child.process.send_signal(SOFT_TIMEOUT_SIGNAL)
                continue
            match reply.kind:
                case "progress":
                    current_job().progress(reply.number, **codec.decode_any(reply.value))
                case "value":
                    return codec.decode_any(reply.value)
                case "later":
                    raise RetryLater(reply.number, reply.text)
                case "reject":
                    raise Reject(reply.text)
                case "soft timeout":
                    raise SoftTimeout(reply.text)
                case _:
                    raise ChildError(reply.text, reply.traceback)

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

"""The process that runs `process=True` tasks: `python -m asyncq.worker.child`, started by `process`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, BinaryIO

import msgspec

from asyncq import codec
from asyncq.backoff import Retry
from asyncq.errors import Reject, RetryLater, SoftTimeout
from asyncq.job import RunningJob, running_job
from asyncq.lifecycle import describe, storable
from asyncq.task import Task
from asyncq.worker.process import SOFT_TIMEOUT_SIGNAL, Reply, Request

__all__ = ["main"]


class _Context:
    def __init__(self, job: RunningJob) -> None:
        self._job = job

    def context(self) -> RunningJob:
        return self._job


class _Pipe:
    """Our end of the conversation. Progress may be reported from threads, hence the lock."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._lock = threading.Lock()

    def receive(self) -> Request | None:
        head = self._incoming.read(4)
        if len(head) < 4:
            return None
        return msgspec.msgpack.decode(self._incoming.read(int.from_bytes(head, "big")), type=Request)

    def send(self, reply: Reply) -> None:
        data = codec.encode(reply)
        with self._lock:
            self._outgoing.write(len(data).to_bytes(4, "big") + data)
            self._outgoing.flush()

    def end_with_worker(self) -> None:
        """Have this process end when the worker does, however that went: what still runs is run again elsewhere."""
        if hasattr(select, "poll"):
            threading.Thread(target=self._watch, name="asyncq tether", daemon=True).start()

    def _watch(self) -> None:
        gone = select.poll()
        gone.register(self._incoming, select.POLLHUP)
        gone.poll()
        os._exit(1)

    def report(self, _: str, percent: float, meta: dict[str, Any]) -> None:
        self.send(Reply("progress", value=msgspec.Raw(codec.encode(meta)), number=percent))


def find_task(module: str, file: str, qualname: str) -> Task[..., Any]:
    """The task as its module names it; a script run as `__main__` is loaded again from its file."""
    if module == "__main__":
        module = "__asyncq_main__"
        if module not in sys.modules:
            spec = importlib.util.spec_from_file_location(module, file)
            if spec is None or spec.loader is None:
                raise ImportError(f"{file} cannot be loaded")
            sys.modules[module] = loaded = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded)
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    if not isinstance(found, Task):
        raise TypeError(f"{module}.{qualname} is not a task any more but {found!r}")
    return found


def answer(pipe: _Pipe, request: Request, soft_timeout: _SoftTimeout) -> Reply:
    """Run one call; whatever it comes to is a reply."""
    retry = Retry()
    try:
        task = find_task(request.module, request.file, request.qualname)
        retry = task.defaults.retry
        args, kwargs = task.arguments.decode(request.args)
        job = RunningJob(
            pipe.report,
            job_id=request.id,
            task=request.task,
            queue=request.queue,
            lane=request.lane,
            attempt=request.attempt,
            crashes=request.crashes,
            enqueued_ms=request.enqueued_ms,
            tags=request.tags,
        )
        running_job.set(_Context(job))
        with soft_timeout.may_interrupt(job):
            value = task.function(*args, **kwargs)
        try:
            return Reply("value", value=msgspec.Raw(codec.encode(value)))
        except Exception as error:
            return Reply("unencodable", text=storable(f"{request.task} returned {type(value).__name__}: {error}"))
    except RetryLater as later:
        return Reply("later", text=storable(str(later.reason)), number=later.delay)
    except Reject as rejected:
        return Reply("reject", text=storable(str(rejected.reason)))
    except SoftTimeout as timeout:
        return Reply("soft timeout", text=storable(str(timeout)))
    except BaseException as error:
        text, trace = describe(error), storable(traceback.format_exc())
        return Reply("error", text=text, traceback=trace, covered=retry.covers(error))


class _SoftTimeout:
    """The worker's signal: raises in the code that runs, or when it begins, and does nothing between calls."""

    def __init__(self) -> None:
        self._job: RunningJob | None = None
        self._came = False
        if SOFT_TIMEOUT_SIGNAL is not None:
            signal.signal(SOFT_TIMEOUT_SIGNAL, self._interrupt)

    def expect(self) -> None:
        """A call has come: from now on the signal is for it."""
        self._came = False

    @contextmanager
    def may_interrupt(self, job: RunningJob) -> Iterator[None]:
        self._job = job
        try:
            if self._came:
                self._raise(job)
            yield
        finally:
            self._job = None

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        self._came = True
        if self._job is not None:
            self._raise(self._job)

    def _raise(self, job: RunningJob) -> None:
        job.timed_out = True
        raise SoftTimeout("the soft timeout has passed")


def main() -> None:
    """Answer until the worker closes the pipe."""
    sys.path.insert(0, os.getcwd())
    # The conversation keeps the pipe to itself: what the task prints goes to standard error.
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    pipe = _Pipe(os.fdopen(os.dup(0), "rb"), outgoing)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    soft_timeout = _SoftTimeout()
    pipe.end_with_worker()
    pipe.send(Reply("ready"))
    while (request := pipe.receive()) is not None:
        soft_timeout.expect()
        pipe.send(answer(pipe, request, soft_timeout))


if __name__ == "__main__":
    main()

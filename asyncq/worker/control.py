"""Orders from outside: cancel a job, quiet or stop a worker, show stacks.

They come as messages on a channel, which may be lost; so what must not be lost, the wish to cancel, is also
kept in Redis and asked for with every heartbeat.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from asyncq.worker.delivery import Delivery
from asyncq.worker.sources import Source

__all__ = ["Control", "Orders", "stacks"]

log = logging.getLogger("asyncq.worker")

_INNER = ("cr_await", "gi_yieldfrom", "ag_await", "_inner")
"""What each kind of awaitable waits for; the last one is that of our own `Interruptible`."""


class Orders(Protocol):
    """What can be ordered of a worker."""

    name: str

    def stop(self) -> None: ...
    def quiet(self) -> None: ...
    def dump_stacks(self) -> None: ...


class Control:
    """Carries out the orders that reach one partition."""

    def __init__(self, source: Source, worker: Orders) -> None:
        self._source, self._worker = source, worker

    def obey(self, message: bytes) -> None:
        """An order: `cancel <job id>`, or `quiet|stop|stacks <worker name>`, where `*` means every worker."""
        order, _, whom = message.decode(errors="replace").partition(" ")
        if order == "cancel":
            self.cancel([whom.encode()])
        elif whom in ("*", self._worker.name, self._source.consumer):
            match order:
                case "quiet":
                    self._worker.quiet()
                case "stop":
                    self._worker.stop()
                case "stacks":
                    self._worker.dump_stacks()
                case _:
                    log.warning("unknown order %r", order)

    async def look(self) -> None:
        """Carry out wishes to cancel whose message was lost."""
        running = [delivery.id for delivery in self._source.deliveries() if not delivery.settled]
        for first in range(0, len(running), 500):
            self.cancel(await self._source.store.cancel_requests(running[first : first + 500]))

    def cancel(self, ids: Iterable[bytes]) -> None:
        wanted = set(ids)
        for delivery in self._source.deliveries():
            if delivery.id in wanted and delivery.stop != "cancelled":
                log.info("%r is cancelled by request", delivery)
                delivery.halt("cancelled")


def stacks(deliveries: Iterable[Delivery]) -> str:
    """Where each running job stands, and where the threads do in which `def` tasks run."""
    text = io.StringIO()
    for delivery in deliveries:
        if delivery.running is not None and not delivery.settled:
            text.write(f"{delivery!r}, attempt {delivery.attempt}:\n")
            text.writelines(traceback.format_list(_stack(delivery.running.get_coro())))
    if not text.tell():
        return "no job is running\n"
    frames = sys._current_frames()
    for thread in threading.enumerate():
        if thread.ident in frames and "worker thread" in thread.name:
            stack = traceback.extract_stack(frames[thread.ident])
            if not _is_idle(stack):
                text.write(f"{thread.name}:\n")
                text.writelines(traceback.format_list(stack))
    return text.getvalue()


def _is_idle(stack: Sequence[traceback.FrameSummary]) -> bool:
    """Whether a thread of anyio waits for something to do."""
    return [frame.name for frame in stack[-3:]] == ["run", "get", "wait"] and "anyio" in stack[-3].filename


def _stack(waiting: Any) -> list[traceback.FrameSummary]:
    """The stack of a suspended coroutine, outermost first. `Task.print_stack` shows only its first frame."""
    found = []
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if frame is not None:
            code = frame.f_code
            found.append(traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name))
        waiting = next(
            (inner for name in _INNER if (inner := getattr(waiting, name, None)) is not None),
            None,
        )
    return found

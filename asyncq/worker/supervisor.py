"""Several worker processes, and their restarts.

The children are started anew (`python -m asyncq worker`), not forked, each in a session of its own: signals
reach them through the supervisor alone. A socket ties each to it. Through it a child says that it has started,
and when it closes, because the supervisor is gone however it went, the child stops as on SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import anyio

__all__ = ["CANNOT_START", "USED_UP", "Child", "Supervisor", "Tether", "on_signals"]

log = logging.getLogger("asyncq.supervisor")

CANNOT_START = 2
"""Exit code of a worker that was called wrongly: starting it again would not help."""

USED_UP = 75
"""Exit code of a supervised worker that reached max_jobs or max_memory: another one is to take its place."""

TRIES = 3
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
LONG_ENOUGH_S = 60.0
"""A child that lived for so long has not crashed at once: the pauses begin anew."""
PATIENCE_S = 20.0
"""How much longer than its grace a stopping child may take before it is killed."""


@contextmanager
def on_signals(handlers: Mapping[str, Callable[[], None]]) -> Iterator[None]:
    """Have the running event loop handle signals, given by name; those the system does not know are left out."""
    loop = asyncio.get_running_loop()
    numbers = {getattr(signal, name): handler for name, handler in handlers.items() if hasattr(signal, name)}
    for number, handler in numbers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


class Tether:
    """A child's end of the socket to its supervisor."""

    def __init__(self, descriptor: int, patience_s: float) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._patience_s = patience_s
        threading.Thread(target=self._watch, name="asyncq tether", daemon=True).start()

    def started(self) -> None:
        """Tell the supervisor that the worker works now."""
        try:
            self._socket.send(b"+")
        except OSError:
            log.debug("the supervisor is gone")

    def _watch(self) -> None:
        """Wait for the end of the supervisor; then stop this process as SIGTERM does, or by force if that fails."""
        with suppress(OSError):
            self._socket.recv(1)
        log.warning("the supervisor is gone: this worker stops")
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(self._patience_s)
        os._exit(1)


class Child:
    """A process at the other end of a tether."""

    def __init__(
        self, process: asyncio.subprocess.Process, tether: socket.socket, on_start: Callable[[], None]
    ) -> None:
        self.process, self._socket, self._on_start = process, tether, on_start
        self.started = False
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, command: Sequence[str], on_start: Callable[[], None] = lambda: None) -> Child:
        """Start `command --tether FD`; `on_start` is called when the worker in it has started."""
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                *command,
                "--tether",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        return cls(process, ours, on_start)

    async def _listen(self) -> None:
        with suppress(OSError):
            if await asyncio.get_running_loop().sock_recv(self._socket, 1):
                self.started = True
                self._on_start()

    async def wait(self) -> int:
        """Its exit code, negative for a signal, once it has ended."""
        code = await self.process.wait()
        # It may have ended right after it said that it started. What inherited its socket may keep that open.
        await asyncio.wait([self._listening], timeout=1.0)
        self._listening.cancel()
        self._socket.close()
        return code

    def send(self, name: str) -> None:
        """Send a signal. One that has not started has no handlers yet, so it gets only what may end it."""
        if self.process.returncode is None and (self.started or name in ("SIGTERM", "SIGKILL")):
            self.process.send_signal(getattr(signal, name))


class Supervisor:
    """Keeps `count` children running: `command(n)` is the command line of the n-th, from 1.

    A child that crashed is started again after a pause that doubles; one that was used up, at once; one that
    exits with 0 was told to, and stays away. Children that cannot even start are given up.

    grace_s:  what children are given to stop; after that and some more they are killed
    """

    def __init__(self, command: Callable[[int], Sequence[str]], count: int, grace_s: float) -> None:
        self._command, self._count, self._grace_s = command, count, grace_s
        self._children: dict[int, Child] = {}
        self._stopping, self._quiet = asyncio.Event(), False
        self._may_start = asyncio.Event()
        self._ever_started, self._failed_starts = False, 0
        self._code = 0

    async def run(self) -> int:
        """Until all children have ended for good; the exit code for this process."""
        handlers: dict[str, Callable[[], None]] = {
            "SIGTERM": self.stop,
            "SIGINT": self.stop,
            "SIGTSTP": self.quiet,
            "SIGUSR2": self.dump_stacks,
        }
        with on_signals(handlers):
            async with anyio.create_task_group() as group:
                group.start_soon(self._kill_the_stubborn)
                async with anyio.create_task_group() as keepers:
                    for number in range(1, self._count + 1):
                        keepers.start_soon(self._keep, number)
                group.cancel_scope.cancel()
        return self._code

    # -- orders -------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """As `Worker.stop`, of all children; twice: without grace."""
        log.info("%s", "stopping now" if self._stopping.is_set() else "stopping")
        self._stopping.set()
        self._may_start.set()
        self._send("SIGTERM")

    def quiet(self) -> None:
        """As `Worker.quiet`, of all children. None is started any more."""
        self._quiet = True
        self._may_start.set()
        self._send("SIGTSTP")

    def dump_stacks(self) -> None:
        """As `Worker.dump_stacks`, of all children."""
        self._send("SIGUSR2")

    def _send(self, name: str) -> None:
        for child in self._children.values():
            child.send(name)

    # -- children -----------------------------------------------------------------------------------------

    async def _keep(self, number: int) -> None:
        """Keep the n-th child running."""
        loop, pause_s = asyncio.get_running_loop(), SHORTEST_PAUSE_S
        if number > 1:
            # The first goes ahead: what keeps it from starting is then said once, not by every child.
            await self._may_start.wait()
        while not (self._stopping.is_set() or self._quiet):
            began_s = loop.time()
            code = await self._run_one(number)
            if self._stopping.is_set() or code == 0:
                log.info("worker process %d has ended", number)
                self._may_start.set()
                return
            if code == USED_UP:
                log.info("worker process %d is used up: another one takes its place", number)
                continue
            if not self._ever_started and self._cannot_start(code):
                return
            if loop.time() - began_s >= LONG_ENOUGH_S:
                pause_s = SHORTEST_PAUSE_S
            log.error("worker process %d %s; again in %.1f s", number, _how(code), pause_s)
            await self._pause(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _run_one(self, number: int) -> int:
        """One child from start to end; its exit code."""
        child = await Child.start(self._command(number), lambda: self._on_start(number))
        self._children[number] = child
        if self._stopping.is_set():  # It came while we were starting.
            child.send("SIGTERM")
        try:
            return await child.wait()
        finally:
            del self._children[number]

    def _on_start(self, number: int) -> None:
        self._ever_started = True
        self._may_start.set()
        if self._quiet:
            self._children[number].send("SIGTSTP")

    def _cannot_start(self, code: int) -> bool:
        """Whether to give up, because no child has ever worked. Says why, once, and ends them all."""
        self._failed_starts += 1
        if code != CANNOT_START and self._failed_starts < TRIES:
            return False
        if self._code == 0:
            self._code = code if code > 0 else 1
            log.error("workers cannot start: the last one %s, see above. Giving up", _how(code))
            self.stop()
        return True

    async def _pause(self, seconds: float) -> None:
        """Wait, or until told to stop."""
        with anyio.move_on_after(seconds):
            await self._stopping.wait()

    async def _kill_the_stubborn(self) -> None:
        await self._stopping.wait()
        await asyncio.sleep(self._grace_s + PATIENCE_S)
        if self._children:
            numbers = ", ".join(map(str, self._children))
            log.error("worker process %s: killed. Its jobs return when their leases run out", numbers)
        self._send("SIGKILL")


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

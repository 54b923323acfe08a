"""Restarts a worker when the code changes. It runs in a process of its own, so that nothing of the old code stays."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from asyncq.errors import ConfigError
from asyncq.worker.supervisor import PATIENCE_S, USED_UP, Child, on_signals

__all__ = ["reload_for_ever"]

log = logging.getLogger("asyncq.reload")

QUICK_MS = 50
"""Changes that come together are one."""


async def reload_for_ever(command: Sequence[str], grace_s: float, directory: Path | None = None) -> int:
    """Run `command`, anew for each change of a .py file, until a signal comes or it ends by itself; its exit code.

    Raises:
        ConfigError: watchfiles is not installed.
    """
    try:
        from watchfiles import PythonFilter, awatch
    except ImportError:
        raise ConfigError("to restart when the code changes takes watchfiles: pip install 'asyncq[reload]'") from None
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    place = directory or Path.cwd()
    # Byte code is told from newer source by the second: two changes within one would not be seen.
    python, *arguments = command
    reloader = _Reloader([python, "-B", *arguments], grace_s)
    with on_signals(
        {
            "SIGTERM": reloader.stop,
            "SIGINT": reloader.stop,
            "SIGTSTP": lambda: reloader.pass_on("SIGTSTP"),
            "SIGUSR2": lambda: reloader.pass_on("SIGUSR2"),
        }
    ):
        working = asyncio.create_task(reloader.run())
        working.add_done_callback(lambda _: reloader.ended.set())
        async for changes in awatch(place, watch_filter=PythonFilter(), step=QUICK_MS, stop_event=reloader.ended):
            names = sorted({Path(path).name for _, path in changes})
            log.info("%s changed: restarting", ", ".join(names))
            reloader.changed.set()
        return await working


class _Reloader:
    def __init__(self, command: Sequence[str], grace_s: float) -> None:
        self._command, self._grace_s = command, grace_s
        self._child: Child | None = None
        self._stopping = False
        self.changed, self.ended = asyncio.Event(), asyncio.Event()

    def pass_on(self, name: str) -> None:
        if self._child is not None:
            self._child.send(name)

    def stop(self) -> None:
        self._stopping = True
        self.changed.set()
        self.pass_on("SIGTERM")

    async def run(self) -> int:
        """Start, wait for a change or an end, stop, and again."""
        while True:
            self.changed.clear()
            self._child = await Child.start(self._command)
            ended = asyncio.create_task(self._child.wait())
            changed = asyncio.create_task(self.changed.wait())
            await asyncio.wait([ended, changed], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._end(ended)
            elif not self._stopping and (code := ended.result()) != USED_UP:
                if code == 0:
                    changed.cancel()
                    return 0
                log.error("the worker ended with code %d; it is started again when a file changes", code)
                await changed
            changed.cancel()
            if self._stopping:
                return 0

    async def _end(self, ended: asyncio.Task[int]) -> None:
        """Stop the child, and wait until it is gone."""
        if not self._stopping:
            self.pass_on("SIGTERM")
        done, _ = await asyncio.wait([ended], timeout=self._grace_s + PATIENCE_S)
        if not done:
            log.error("the worker does not stop: it is killed. Its jobs return when their leases run out")
            self.pass_on("SIGKILL")
            await ended

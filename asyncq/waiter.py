"""Waits for jobs to end: told by the server, and looking besides."""

from __future__ import annotations

import asyncio

from asyncq import codec
from asyncq.errors import JobNotFound
from asyncq.events import Listener
from asyncq.job import JobInfo
from asyncq.monitor import Monitor
from asyncq.store import Store

__all__ = ["Waiter"]

LOOK_AGAIN_S = 5.0
"""A published ending can be lost while reconnecting, so whoever awaits one looks this often besides."""


class Waiter:
    """One connection that hears the endings of all jobs somebody awaits here; opened by the first."""

    def __init__(self, home: Store) -> None:
        self._home = home
        self._listener: Listener | None = None
        self._opening = asyncio.Lock()

    async def aclose(self) -> None:
        if self._listener is not None:
            await self._listener.aclose()

    async def ending(self, job_id: str, store: Store, monitor: Monitor) -> codec.Record | JobInfo:
        """The record a job ended with, or its dead letter. Safe to cancel.

        Raises:
            JobNotFound: nothing is known of it, or it ended and left no result.
        """
        listener = await self._open()
        told: asyncio.Queue[bytes] = asyncio.Queue()
        channel = store.keys.ended + job_id
        try:
            await listener.hear(channel, told.put_nowait)
            while True:
                # Only after the channel is heard: an ending in between would be told to nobody.
                while (await store.watch([job_id]))[0]:
                    try:
                        async with asyncio.timeout(LOOK_AGAIN_S):
                            record = await told.get()
                    except TimeoutError:
                        continue
                    if record:
                        return codec.decode_record(record)
                ended = await self._look(job_id, store, monitor)
                if ended is not None:
                    return ended
        finally:
            await listener.forget(channel, told.put_nowait)

    async def _look(self, job_id: str, store: Store, monitor: Monitor) -> codec.Record | JobInfo | None:
        """How a job that is no longer live has ended; None when it is live again, revived meanwhile."""
        record = await store.link.command("GET", store.keys.result(job_id))
        if record:
            return codec.decode_record(record)
        info = await monitor.look(job_id)
        if info is None:
            raise JobNotFound(f"nothing is known of job {job_id}: it ended and no result is kept (any more)")
        return info if info.state in ("failed", "expired") else None

    async def _open(self) -> Listener:
        async with self._opening:
            if self._listener is None:
                link = self._home.link
                listener = Listener(link.redis, link.url, self._home.keys.ended)
                await listener.open()
                self._listener = listener
        return self._listener

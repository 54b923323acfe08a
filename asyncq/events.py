"""Listens to what Redis publishes. A message is a hint, never the truth: one may be lost while reconnecting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from asyncq.connect import translate

__all__ = ["Listener"]

log = logging.getLogger("asyncq")

Handler = Callable[[bytes], None]
RECONNECT_S = 0.5
SUBSCRIBE_AGAIN_S = 1.0


class Listener:
    """One connection that hears any number of channels. Reconnects and subscribes again by itself.

    Whoever listens must also look for itself now and then; `on_gap` tells when something may have been missed.
    """

    def __init__(self, redis: Redis, url: str, home: str, on_gap: Callable[[], None] = lambda: None) -> None:
        self._pubsub: PubSub = redis.pubsub()
        self._url, self._home, self._on_gap = url, home, on_gap
        self._handlers: dict[bytes, list[Handler]] = {}
        self._confirmed: dict[bytes, asyncio.Future[None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start to listen.

        Raises:
            ServerUnavailable, ServerRefused: the first connection failed.
        """
        try:
            # A connection that hears nothing yet cannot be read from, so it always hears its home channel.
            await self._pubsub.subscribe(self._home)
        except (exceptions.RedisError, OSError) as error:
            raise translate(error, self._url) from error
        self._task = asyncio.create_task(self._read(), name="asyncq listener")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]

    async def hear(self, channel: str, handler: Handler) -> None:
        """Call `handler` for each message; when this returns, none that is published from now on is missed."""
        name = channel.encode()
        handlers = self._handlers.setdefault(name, [])
        handlers.append(handler)
        if len(handlers) == 1:
            self._confirmed[name] = asyncio.get_running_loop().create_future()
            await self._subscribe(channel)
        confirmed = self._confirmed[name]
        while not (await asyncio.wait([confirmed], timeout=SUBSCRIBE_AGAIN_S))[0]:
            await self._subscribe(channel)

    async def _subscribe(self, channel: str) -> None:
        """Ask for a channel. Where that fails redis-py forgets it, so ask again until the server confirms."""
        try:
            await self._pubsub.subscribe(channel)
        except (exceptions.RedisError, OSError) as error:
            log.debug("subscribe to %s: %s", channel, translate(error, self._url))

    async def forget(self, channel: str, handler: Handler) -> None:
        """Undo one `hear`."""
        name = channel.encode()
        handlers = self._handlers.get(name, [])
        if handler in handlers:
            handlers.remove(handler)
        if not handlers and self._handlers.pop(name, None) is not None:
            self._confirmed.pop(name).cancel()
            try:
                await self._pubsub.unsubscribe(channel)
            except (exceptions.RedisError, OSError):
                log.debug("unsubscribe from %s failed; the connection is gone anyway", channel)

    async def _read(self) -> None:
        while True:
            try:
                message = await self._pubsub.get_message(timeout=None)
            except (exceptions.RedisError, OSError) as error:
                log.debug("listener: %s", translate(error, self._url))
                await asyncio.sleep(RECONNECT_S)
                self._on_gap()
                continue
            if message is None:
                continue
            name: bytes = message["channel"]
            if message["type"] == "subscribe":
                waiting = self._confirmed.get(name)
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)
            elif message["type"] == "message":
                for handler in tuple(self._handlers.get(name, ())):
                    handler(message["data"])

"""Runs scripts: by hash, loading them where the server has forgotten, never twice by itself.

This is the one place that speaks to redis-py below its client: a script call with a few thousand arguments is
packed by hiredis in C and written as one piece. The client's own way packs in Python, which costs more than
everything else the worker does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from asyncq import connect, scripts
from asyncq.clock import monotonic_s
from asyncq.errors import AsyncqError

__all__ = ["Link"]

FRESH_S = 1.0
"""A connection unused for longer is looked at before it is used: the server may have closed it meanwhile."""


class Link:
    """Connections to one server. Several calls may be under way at once; each has a connection of its own.

    reply_timeout_s: a call without an answer for this long is given up and its connection dropped, for a
        connection can die without a word. Whether it ran is unknown then; every script may be called again.
    """

    def __init__(self, redis: Redis, url: str, reply_timeout_s: float = 30.0) -> None:
        self.redis, self.url = redis, url
        self.reply_timeout_s = reply_timeout_s
        self._idle: list[tuple[AbstractConnection, float]] = []
        self._closed = False

    async def call(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """What the script returned.

        Raises:
            ServerUnavailable: no answer; the script may have run.
            ServerRefused: the server's error; nothing was written.
        """
        script = scripts.load(name)
        try:
            return await self._exchange("EVALSHA", script.sha, len(keys), *keys, *args)
        except exceptions.NoScriptError:  # Nothing ran: the server was restarted or flushed its cache.
            await self.command("SCRIPT", "LOAD", script.source)
            return await self.command("EVALSHA", script.sha, len(keys), *keys, *args)
        except (exceptions.RedisError, OSError) as error:
            raise self.translate(error) from error

    async def command(self, *words: str | bytes | float) -> Any:
        """One plain command and the reply as it is; the same errors as `call`."""
        try:
            return await self._exchange(*words)
        except (exceptions.RedisError, OSError) as error:
            raise self.translate(error) from error

    async def wait_for(self, command: str, *words: str | float, wait_s: float) -> Any:
        """A command that blocks for up to `wait_s` on the server; safe to cancel."""
        try:
            return await self._exchange(command, *words, wait_s, timeout_s=wait_s + 5.0)
        except (exceptions.RedisError, OSError) as error:
            raise self.translate(error) from error

    def translate(self, error: BaseException) -> AsyncqError:
        return connect.translate(error, self.url)

    async def aclose(self) -> None:
        self._closed = True
        for connection, _ in self._idle:
            await connection.disconnect()
        self._idle.clear()
        await self.redis.aclose()

    async def _exchange(self, *words: Any, timeout_s: float | None = None) -> Any:
        connection = await self._take()
        try:
            async with asyncio.timeout(timeout_s or self.reply_timeout_s):
                await connection.send_packed_command(pack_command(words), check_health=False)
                reply = await connection.read_response()
        except exceptions.ResponseError:
            await self._give_back(connection)
            raise
        except BaseException:
            # Cancelled or cut off: a reply may still come, and must not be taken for another's.
            await connection.disconnect(nowait=True)
            raise
        await self._give_back(connection)
        return reply

    async def _take(self) -> AbstractConnection:
        if not self._idle:
            made: AbstractConnection = self.redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
            return made
        connection, used_s = self._idle.pop()
        if monotonic_s() - used_s > FRESH_S:
            try:
                usable = not await connection.can_read()
            except (exceptions.RedisError, OSError):
                usable = False
            if not usable:
                await connection.disconnect(nowait=True)
        return connection

    async def _give_back(self, connection: AbstractConnection) -> None:
        if self._closed:
            await connection.disconnect()
        else:
            self._idle.append((connection, monotonic_s()))

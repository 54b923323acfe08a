"""Runs scripts: by hash, loading them where the server has forgotten, never twice by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis import exceptions
from redis.asyncio import Redis

from asyncq import connect, scripts
from asyncq.errors import AsyncqError

__all__ = ["Link"]


class Link:
    """A client of one server. Several calls may be under way at once; each has a connection of its own.

    reply_timeout_s: a call without an answer for this long is given up and its connection dropped, for a
        connection can die without a word. Whether it ran is unknown then; every script may be called again.
    """

    def __init__(self, redis: Redis, url: str, reply_timeout_s: float = 30.0) -> None:
        self.redis, self.url = redis, url
        self.reply_timeout_s = reply_timeout_s

    async def call(self, name: str, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """What the script returned.

        Raises:
            ServerUnavailable: no answer; the script may have run.
            ServerRefused: the server's error; nothing was written.
        """
        script = scripts.load(name)
        try:
            async with asyncio.timeout(self.reply_timeout_s):
                try:
                    return await self.redis.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
                except exceptions.NoScriptError:  # Nothing ran: the server was restarted or flushed its cache.
                    await self.redis.execute_command("SCRIPT LOAD", script.source)
                    return await self.redis.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
        except (exceptions.RedisError, OSError) as error:
            raise self.translate(error) from error

    async def command(self, *words: str | bytes | int) -> Any:
        """One plain command; the same errors as `call`."""
        try:
            async with asyncio.timeout(self.reply_timeout_s):
                return await self.redis.execute_command(*words)
        except (exceptions.RedisError, OSError) as error:
            raise self.translate(error) from error

    def translate(self, error: BaseException) -> AsyncqError:
        return connect.translate(error, self.url)

    async def aclose(self) -> None:
        await self.redis.aclose()

"""Runs scripts: by hash, loading them where the server has forgotten, never twice by itself."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from asyncq import connect, scripts
from asyncq.clock import monotonic_s
from asyncq.errors import AsyncqError
from asyncq.wire import Wire

__all__ = ["Link"]


MOST = 64
"""Calls under way at once, and so connections; those beyond wait for their turn. Blocking waits come on top."""


class Interrupted(Exception):
    """A wait was ended from here."""


class Link:
    """Connections to one server. Up to `MOST` calls are under way at once, each on a connection of its own.

    reply_timeout_s: a call without an answer for this long is given up and its connection dropped, for a
        connection can die without a word. Whether it ran is unknown then; every script may be called again.
    """

    def __init__(self, redis: Redis, url: str, reply_timeout_s: float = 30.0) -> None:
        self.redis, self.url = redis, url
        self.reply_timeout_s = reply_timeout_s
        self._idle: list[Wire] = []
        self._busy: set[Wire] = set()
        self._waiting: set[Wire] = set()
        self._turns = asyncio.Semaphore(MOST)
        self._timer: asyncio.TimerHandle | None = None
        self._next_s = math.inf
        self._interrupts = 0
        self._closed = False

    async def call(self, name: str, keys: Sequence[str], args: Sequence[Any], timeout_s: float | None = None) -> Any:
        """What the script returned; `timeout_s` instead of `reply_timeout_s`.

        Raises:
            ServerUnavailable: no answer; the script may have run.
            ServerRefused: the server's error; nothing was written.
        """
        script, words, timeout_s = scripts.load(name), (len(keys), *keys, *args), timeout_s or self.reply_timeout_s
        try:
            try:
                return await self._in_turn(("EVALSHA", script.sha, *words), timeout_s)
            except exceptions.NoScriptError:
                # Nothing ran: the server was restarted or flushed its cache. In one step, for it may do so again.
                return await self._in_turn(("EVAL", script.source, *words), timeout_s)
        except (exceptions.RedisError, OSError) as error:
            raise self.translate(error) from error

    async def command(self, *words: str | bytes | float) -> Any:
        """One plain command and the reply as it is; the same errors as `call`."""
        try:
            return await self._in_turn(words, self.reply_timeout_s)
        except (exceptions.RedisError, OSError) as error:
            raise self.translate(error) from error

    async def wait_for(self, *words: str | float, wait_s: float) -> Any:
        """A command that blocks on the server for up to `wait_s`, its last argument. None after `interrupt`."""
        try:
            return await self._exchange((*words, wait_s), timeout_s=wait_s + 5.0, among=self._waiting)
        except Interrupted:
            return None
        except (exceptions.RedisError, OSError) as error:
            raise self.translate(error) from error

    async def wait_then_call(
        self, waiting: Sequence[str], wait_s: float, name: str, keys: Sequence[str], args: Sequence[Any]
    ) -> Any:
        """A command that blocks, and in the same trip a script that runs when it is over: what the script returned.

        None after `interrupt`: then the script may have run or not.
        """
        script, words = scripts.load(name), (len(keys), *keys, *args)
        wait, run = (*waiting, wait_s), ("EVALSHA", script.sha, *words)
        try:
            _, reply = await self._exchange(wait, run, timeout_s=wait_s + 5.0, among=self._waiting)
            if isinstance(reply, exceptions.NoScriptError):
                return await self._in_turn(("EVAL", script.source, *words), self.reply_timeout_s)
            if isinstance(reply, Exception):
                raise reply
        except Interrupted:
            return None
        except (exceptions.RedisError, OSError) as error:
            raise self.translate(error) from error
        return reply

    def interrupt(self) -> None:
        """End every `wait_for` and `wait_then_call` now. What they were about to return is lost."""
        self._interrupts += 1
        for wire in tuple(self._waiting):
            wire.fail(Interrupted())

    def translate(self, error: BaseException) -> AsyncqError:
        return connect.translate(error, self.url)

    async def aclose(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for wire in (*self._idle, *self._busy, *self._waiting):
            wire.drop()
        self._idle.clear()
        await self.redis.aclose()

    async def _in_turn(self, words: tuple[Any, ...], timeout_s: float) -> Any:
        """One exchange as soon as fewer than `MOST` are under way. The time until then counts."""
        if self._turns.locked():
            began_s = monotonic_s()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._turns.acquire()
            except TimeoutError:
                raise exceptions.TimeoutError(f"{MOST} other calls are under way") from None
            timeout_s -= monotonic_s() - began_s
        else:
            await self._turns.acquire()
        try:
            return await self._exchange(words, timeout_s=timeout_s)
        finally:
            self._turns.release()

    async def _exchange(self, *commands: tuple[Any, ...], timeout_s: float, among: set[Wire] | None = None) -> Any:
        interrupts = self._interrupts
        wire = await self._take()
        if among is not None and interrupts != self._interrupts:  # While we connected; nothing was sent.
            self._idle.append(wire)
            raise Interrupted
        wire.deadline_s = monotonic_s() + timeout_s
        busy = self._busy if among is None else among
        busy.add(wire)
        if wire.deadline_s < self._next_s:
            self._look_at(wire.deadline_s)
        try:
            reply = await wire.call(*commands)
            if len(commands) > 1 and any(isinstance(one, exceptions.ReadOnlyError) for one in reply):
                wire.drop()
        except exceptions.ReadOnlyError:
            wire.drop()  # The server became a replica; the address may lead to the new master.
            raise
        except exceptions.ResponseError:
            self._idle.append(wire)
            raise
        except Interrupted:
            await wire.closed.wait()  # So that whoever looks what became of it looks after the server gave it up.
            raise
        except BaseException:
            wire.drop()
            raise
        finally:
            busy.discard(wire)
        self._idle.append(wire)
        return reply

    async def _take(self) -> Wire:
        while self._idle:
            wire = self._idle.pop()
            if not wire.lost:
                return wire
        if self._closed:
            raise exceptions.ConnectionError("the connection was closed here")
        connection: AbstractConnection = self.redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        return await Wire.open(connection)

    def _look_at(self, at_s: float) -> None:
        """One timer for all calls, at the earliest deadline."""
        if self._timer is not None:
            self._timer.cancel()
        self._next_s = at_s
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at_s - monotonic_s()), self._look)

    def _look(self) -> None:
        """Give up calls that have waited for too long."""
        now = monotonic_s()
        self._timer, self._next_s = None, math.inf
        under_way = [*self._busy, *self._waiting]
        for wire in under_way:
            if wire.deadline_s <= now:
                wire.fail(exceptions.TimeoutError("no answer in time"))
        later = [wire.deadline_s for wire in under_way if wire.deadline_s > now]
        if later:
            self._look_at(min(later))

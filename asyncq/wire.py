"""One connection, one call at a time, with nothing between the event loop and hiredis.

redis-py opens the connection, because it knows how: TLS, passwords, databases, Sentinel. Then its transport is
given this protocol, and redis-py's streams, parsers and bookkeeping are out of the way: they cost several
times what hiredis does. This is the one file that reaches below redis-py's public face.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hiredis import ProtocolError, Reader, pack_command
from redis import exceptions
from redis.asyncio.connection import AbstractConnection

__all__ = ["Wire"]

_MORE = object()


class Wire(asyncio.Protocol):
    """A connection to the server.

    lost:        it is closed, by either side; no call will succeed
    closed:      set when our side is closed: what is sent on another connection after that, the server sees later
    deadline_s:  when the call under way is given up, monotonic; whoever owns the wire looks at it
    """

    def __init__(self, connection: AbstractConnection) -> None:
        parser: Any = connection._parser
        writer = connection._writer
        assert writer is not None
        self._connection = connection  # Its streams would close the transport if they were collected.
        self._transport: Any = writer.transport
        self._reader = Reader(protocolError=ProtocolError, replyError=parser.parse_error, notEnoughData=_MORE)
        self._answer: asyncio.Future[Any] | None = None
        self._replies: list[Any] = []
        self._expected = 1
        self._loop = asyncio.get_running_loop()
        self.lost = False
        self.closed = asyncio.Event()
        self.deadline_s = 0.0
        self._transport.set_protocol(self)

    @classmethod
    async def open(cls, connection: AbstractConnection) -> Wire:
        """Connect and log in, by redis-py.

        Raises:
            redis.RedisError, OSError: whatever redis-py raises.
        """
        await connection.connect()  # type: ignore[no-untyped-call]
        return cls(connection)

    def call(self, *commands: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Send a command; the future holds its reply, or the error the server answered.

        Several commands make one trip, and the server runs them one after the other, each when the one before is
        over; the future holds the list of their replies, errors among them.
        After anything else than a reply or a `ResponseError` the wire must be dropped: an answer may still come.
        """
        self._answer = self._loop.create_future()
        if self.lost:
            self._answer.set_exception(exceptions.ConnectionError("the server closed the connection"))
        else:
            self._replies, self._expected = [], len(commands)
            self._transport.write(b"".join([pack_command(words) for words in commands]))
        return self._answer

    def fail(self, error: BaseException) -> None:
        """End the call under way with an error, and the connection."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.drop()

    def drop(self) -> None:
        """Close at once."""
        self.lost = True
        self._transport.abort()

    # -- called by the transport --------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        answer = self._answer
        while answer is not None and not answer.done():
            try:
                reply = self._reader.gets()
            except ProtocolError as error:
                self.fail(exceptions.InvalidResponse(str(error)))
                return
            if reply is _MORE:
                return
            self._replies.append(reply)
            if len(self._replies) < self._expected:
                continue
            if self._expected > 1:
                answer.set_result(self._replies)
            elif isinstance(reply, Exception):
                answer.set_exception(reply)
            else:
                answer.set_result(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.closed.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exceptions.ConnectionError(str(error or "the server closed the connection")))
        self._connection._reader = self._connection._writer = None

"""A TCP proxy in front of a server, which can do to a connection what networks do."""

from __future__ import annotations

import asyncio
import ssl
from typing import Self
from urllib.parse import urlsplit

from tests.servers import TestServer


class Proxy:
    """Passes bytes on, until told otherwise. `url` is the server's, through us.

    lose_replies:  the next so many replies are not passed on: the connection is cut in their place, after the
                   server has run the command
    hold_replies:  replies are kept back while this is cleared
    deaf:          a black hole: what comes is dropped, nothing is answered, nothing is closed
    refusing:      new connections are cut at once

    With `tls` clients speak TLS with us, and we plainly with the server: not every server that we test with can.
    """

    def __init__(self, server: TestServer, tls: ssl.SSLContext | None = None) -> None:
        self._server, self._tls = server, tls
        self._listener: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.lose_replies = 0
        self.hold_replies = asyncio.Event()
        self.hold_replies.set()
        self.deaf = self.refusing = False
        self.connections = self.lost = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        port = self._listener.sockets[0].getsockname()[1]
        parts = urlsplit(self._server.tcp_url)
        login = parts.netloc.rpartition("@")[0]
        self.url = f"redis{'s' if self._tls else ''}://{login + '@' if login else ''}127.0.0.1:{port}{parts.path}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        self.hold_replies.set()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def cut(self) -> None:
        """Cut every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refusing:
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        self._writers |= {writer, there_writer}
        for pump in (self._requests(reader, there_writer), self._replies(there_reader, writer)):
            task = asyncio.create_task(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _requests(self, reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                if self.deaf:
                    continue
                if there.is_closing():
                    break
                there.write(data)
                await there.drain()
        except OSError:
            pass
        there.transport.abort()

    async def _replies(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await there.read(1 << 16):
                await self.hold_replies.wait()
                if self.deaf:
                    continue
                if writer.is_closing():
                    break
                if self.lose_replies:
                    self.lose_replies -= 1
                    self.lost += 1
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.transport.abort()

"""How scripts and commands reach the server."""

from __future__ import annotations

import asyncio

import pytest

from asyncq import connect
from asyncq.errors import ServerUnavailable
from asyncq.link import MOST, Link
from tests.conftest import Launch
from tests.eventually import eventually


async def opened(link: Link) -> int:
    """How many connections the server has but for the one that asks."""
    clients: bytes = await link.command("CLIENT", "LIST")
    return len(clients.splitlines()) - 1


async def test_many_calls_share_few_connections(launch: Launch) -> None:
    url = launch().url
    link, watcher = Link(connect.client(url), url), Link(connect.client(url), url)
    try:
        replies = await asyncio.gather(*(link.command("ECHO", str(number)) for number in range(1500)))
        assert replies == [str(number).encode() for number in range(1500)]
        assert 1 <= await opened(watcher) <= MOST
    finally:
        await link.aclose()
        await watcher.aclose()


async def test_waiting_for_a_turn_counts_against_the_time_a_call_has(launch: Launch) -> None:
    server = launch()
    link = Link(connect.client(server.url), server.url, reply_timeout_s=1.0)
    try:
        assert await link.command("PING") == b"PONG"
        server.pause()
        calls = [asyncio.create_task(link.command("PING")) for _ in range(MOST + 10)]
        done, waiting = await asyncio.wait(calls, timeout=10)
        assert not waiting
        for call in done:
            with pytest.raises(ServerUnavailable):
                call.result()
        server.resume()
        assert await link.command("PING") == b"PONG"
    finally:
        await link.aclose()


async def test_a_call_that_is_cancelled_gives_its_turn_back(launch: Launch) -> None:
    server = launch()
    link = Link(connect.client(server.url), server.url)
    try:
        server.pause()
        calls = [asyncio.create_task(link.command("PING")) for _ in range(MOST * 2)]
        await eventually(lambda: link._turns.locked())
        for call in calls:
            call.cancel()
        await asyncio.wait(calls, timeout=10)
        server.resume()
        assert await link.command("PING") == b"PONG"
        assert not link._turns.locked()
    finally:
        await link.aclose()

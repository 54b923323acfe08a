"""What every test may ask for: a real server, a queue name of its own, a connection.

A test that takes `server` (or `name`, `redis`, `launch`) runs once for each server family found.
"""

from __future__ import annotations

import re
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import redis as sync_redis
from redis.asyncio import Redis

from asyncq.keys import CATALOGUE
from tests.servers import TestServer, available, start_redis, start_valkey

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a script. The processes that tests start would ignore it too, and some are sent it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

Launch = Callable[..., TestServer]

_START: dict[str, Launch] = {"valkey": start_valkey, "redis": start_redis}


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def _servers() -> Iterator[Callable[[str], TestServer]]:
    """The shared servers of this process, each started when first asked for.

    Not parametrized: pytest would stop and start a server whenever the parameter changes.
    """
    running: dict[str, TestServer] = {}

    def get(kind: str) -> TestServer:
        if kind not in running:
            running[kind] = _START[kind]()
        return running[kind]

    yield get
    for server in running.values():
        server.stop()


@pytest.fixture(scope="session", params=[kind for kind in _START if kind == "valkey" or kind in available()])
def server_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(server_kind: str, _servers: Callable[[str], TestServer]) -> TestServer:
    """A server shared by all tests of this process: never flush, stop or reconfigure it (see `launch`)."""
    shared = _servers(server_kind)
    assert shared.alive, f"an earlier test ended the shared server:\n{shared.log}"
    return shared


@pytest.fixture
def launch(server_kind: str) -> Iterator[Launch]:
    """Starts private servers of the family under test, which the test may treat as it likes:
    `launch(aof=True, maxmemory=2_000_000)`.
    """
    started: list[TestServer] = []

    def start(**options: object) -> TestServer:
        server = _START[server_kind](**options)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def name(server: TestServer) -> Iterator[str]:
    """A queue name nobody else has. Longer names that begin with it belong to the test too.

    Fails the test if its queues leave a key behind that ought to have gone; then removes their keys.
    """
    own = f"t{secrets.token_hex(8)}"
    yield own
    with sync_redis.Redis.from_url(server.url, protocol=2) as client:
        forgotten = leftovers(client, own)
        for key in list(client.scan_iter(f"aq:{{{own}*", count=1000)):
            client.delete(key)
        for queue, _ in list(client.hscan_iter(CATALOGUE, f"{own}*")):
            client.hdel(CATALOGUE, queue)
    assert not forgotten, f"keys without TTL that should have gone: {forgotten}"


@pytest.fixture
async def redis(server: TestServer) -> AsyncIterator[Redis]:
    """A connection to the shared server, configured as asyncq's own are."""
    async with connect(server.url) as client:
        yield client


def connect(url: str) -> Redis:
    """A client that sends each command once: `retry=None` is what switches redis-py's ten retries off."""
    return Redis.from_url(url, protocol=2, socket_timeout=None, retry=None, decode_responses=False)


# What a queue keeps for as long as it exists. Any other key must carry a TTL.
_LASTING = re.compile(r"aq:\{[^}]*\}:(lane:.+|index|scheduled|parked|dead|bell:.+|workers|paused|lanes)")


def leftovers(client: sync_redis.Redis, name: str) -> list[str]:
    """Keys of queues whose name begins with `name` which would stay for ever and should not."""
    keys = [bytes(key).decode() for key in client.scan_iter(f"aq:{{{name}*", count=1000)]
    return sorted(key for key in keys if not _LASTING.fullmatch(key) and client.ttl(key) == -1)

"""Every kind of address leads to a server on which jobs run. `embedded://`: see `test_embedded` and the commands."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from asyncq import Queue, ServerUnavailable
from tests.conftest import Launch, connect
from tests.proxy import Proxy
from tests.servers import TestServer
from tests.worker.recording import PROMPTLY

CERTIFICATE = Path(__file__).parent / "tls.pem"
"""For localhost and 127.0.0.1, signed by itself, with its key: for tests and nothing else."""

LARGE = b"x" * 300_000


async def runs_jobs(url: str, name: str) -> None:
    """A job is enqueued, worked with all the connections a worker has, and awaited."""
    queue = Queue(name, url=url)

    @queue.task()
    async def size(data: bytes) -> int:
        return len(data)

    async with queue, queue.worker(concurrency=5):
        jobs = await queue.enqueue_many(size.call(data) for data in (b"", LARGE, LARGE))
        assert [await job.result(PROMPTLY) for job in jobs] == [0, len(LARGE), len(LARGE)]


async def test_tcp(server: TestServer, name: str) -> None:
    await runs_jobs(server.tcp_url, name)


async def test_a_unix_socket(server: TestServer, name: str) -> None:
    await runs_jobs(server.url, name)


async def test_tls(server: TestServer, name: str) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATE)
    async with Proxy(server, tls) as proxy:
        await runs_jobs(f"{proxy.url}?ssl_ca_certs={CERTIFICATE}", name)
        with pytest.raises(ServerUnavailable, match="certificate verify failed"):
            await runs_jobs(proxy.url, name)


async def test_a_user_who_may_only_what_is_needed(launch: Launch) -> None:
    server = launch()
    rights = "~aq:* &aq:* -@all +@stream +@sortedset +@hash +@string +@list +@set +@scripting +@keyspace +@connection"
    async with connect(server.url) as redis:
        await redis.execute_command(  # type: ignore[no-untyped-call]
            "ACL", "SETUSER", "app", "on", ">p:w/d", *rights.split(), "+@pubsub", "-@dangerous", "+time"
        )
    await runs_jobs(f"redis://app:p%3Aw%2Fd@127.0.0.1:{server.port}/0", "t")

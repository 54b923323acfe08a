"""A private server for a benchmark: unix socket, nothing on disk, gone afterwards."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from asyncq.embedded.binary import Binary, find_all

__all__ = ["private_server"]

START_S = 10.0


@contextmanager
def private_server(family: str) -> Iterator[tuple[str, str]]:
    """The URL and the version of a server of this family: redis, valkey, or any (redis first)."""
    binary = _choose(family)
    with tempfile.TemporaryDirectory(prefix="aqb") as folder:
        socket = Path(folder) / "s"
        server = subprocess.Popen(
            [str(binary.path), "--port", "0", "--unixsocket", str(socket), "--dir", folder, "--save", ""],
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_for(socket)
            yield f"unix://{socket}", str(binary)
        finally:
            server.terminate()
            server.wait()


def _choose(family: str) -> Binary:
    found = find_all()
    for binary in sorted(found, key=lambda binary: binary.name != "redis"):
        if family in ("any", binary.name):
            return binary
    raise SystemExit(f"no {family} server found; there are: {', '.join(map(str, found)) or 'none'}")


def _wait_for(socket: Path) -> None:
    deadline = time.monotonic() + START_S
    with Redis(unix_socket_path=str(socket)) as redis:
        while True:
            try:
                redis.ping()
            except (RedisError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

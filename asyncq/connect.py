"""From a URL, or none, to a connection that behaves as the engine needs.

Where no URL is given: `ASYNCQ_URL`, then `REDIS_URL`, then `REDIS_HOST`/`REDIS_PORT`/`REDIS_DB`, then the
embedded server of the working directory. Which one it was, and why, is said in the log.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import anyio.to_thread
import msgspec
from redis import Redis as SyncRedis
from redis import exceptions
from redis.asyncio import Redis

from asyncq.errors import AsyncqError, ConfigError, ServerRefused, ServerUnavailable

__all__ = ["Address", "address", "client", "open_client", "redacted", "sync_client", "translate"]

log = logging.getLogger("asyncq")

SCHEMES = ("redis", "rediss", "unix", "embedded")
CONNECT_TIMEOUT_S = 5.0
_PASSWORD_OPTION = re.compile(r"([?&](?:ssl_)?password=)[^&#]*")


class Address(msgspec.Struct, frozen=True):
    """Where the server is, and why there. `str()` never shows a password."""

    url: str
    why: str

    def __str__(self) -> str:
        return f"{redacted(self.url)} ({self.why})"


def address(url: str | None = None, environ: Mapping[str, str] = os.environ) -> Address:
    """The server to use. Starts nothing.

    Raises:
        ConfigError: the URL's scheme or form is none of ours.
    """
    if url:
        return _checked(url, "given")
    for name in ("ASYNCQ_URL", "REDIS_URL"):
        if environ.get(name):
            return _checked(environ[name], name)
    if environ.get("REDIS_HOST"):
        host, port, db = environ["REDIS_HOST"], environ.get("REDIS_PORT", "6379"), environ.get("REDIS_DB", "0")
        password = environ.get("REDIS_PASSWORD")
        user = f":{quote(password, safe='')}@" if password else ""
        return _checked(f"redis://{user}{host}:{port}/{db}", "REDIS_HOST")
    return Address("embedded://", "no server is configured")


def _checked(url: str, why: str) -> Address:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # What it says may quote a part of the password.
        raise ConfigError(
            f"{redacted(url)!r} ({why}) is not a URL. A port is a number up to 65535; "
            "in a user or password, write / ? # [ ] : @ as %2F and so on"
        ) from None
    if parts.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ConfigError(f"{redacted(url)!r} ({why}): the URL of a server begins with one of {known}")
    if parts.scheme in ("redis", "rediss"):
        if not parts.hostname:
            raise ConfigError(f"{redacted(url)!r} ({why}) names no host; for example redis://localhost:6379/0")
        database = parts.path.strip("/")
        if database and not database.isdecimal():
            raise ConfigError(f"{redacted(url)!r} ({why}): its database is not a number")
    return Address(url, why)


def redacted(url: str) -> str:
    """The URL without its password, for logs and errors."""
    url = _PASSWORD_OPTION.sub(r"\1***", url)
    head, at, tail = url.rpartition("@")
    if not at:
        return url
    scheme, mark, login = head.partition("://") if "://" in head else ("", "", head)
    user, colon, _ = login.partition(":")
    return f"{scheme}{mark}{user}{colon and ':***'}@{tail}"


async def server_url(where: Address) -> str:
    """The URL to connect to; starts the embedded server if that is what is meant."""
    if not where.url.startswith("embedded:"):
        log.info("server: %s", where)
        return where.url
    from asyncq import embedded  # Needs POSIX; a configured server does not.

    server = await anyio.to_thread.run_sync(embedded.ensure, embedded_directory(where.url))
    verb = "started" if server.started else "found"
    log.info("server: embedded %s, %s in %s (%s)", server.version, verb, server.directory, where.why)
    return server.url


def embedded_directory(url: str) -> Path:
    """`embedded://` is `./.asyncq`; `embedded:///var/lib/app` is that folder."""
    parts = urlsplit(url)
    return Path(parts.netloc + parts.path) if parts.netloc + parts.path else Path(".asyncq")


def _options(extra: Mapping[str, Any]) -> dict[str, Any]:
    # redis-py's own retry runs a command twice when only its reply was lost, and a socket timeout would cut
    # blocking waits short; the engine has its own answer to both.
    return {
        "protocol": 2,
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": None,
        "driver_info": None,
        "decode_responses": False,
        **extra,
    }


def client(url: str, **extra: Any) -> Redis:
    """An asyncio client that never repeats a command by itself. Connects on first use."""
    try:
        redis = Redis.from_url(url, **_options(extra))
    except ValueError as error:
        raise ConfigError(f"{redacted(url)!r} cannot be used: {error}") from None
    redis.response_callbacks.clear()  # Replies as the server gives them, whatever the command's variants.
    return redis


def sync_client(url: str, **extra: Any) -> SyncRedis:
    """The same for a thread of its own."""
    redis = SyncRedis.from_url(url, **_options(extra))
    redis.response_callbacks.clear()
    return redis


async def open_client(where: Address, **extra: Any) -> tuple[Redis, str]:
    """A client that has been answered once, and the URL it uses.

    Raises:
        ServerUnavailable: nobody answers, or we are not let in.
    """
    url = await server_url(where)
    redis = client(url, **extra)
    try:
        await redis.ping()
    except (exceptions.RedisError, OSError) as error:
        await redis.aclose()
        raise translate(error, url) from error
    return redis, url


def translate(error: BaseException, url: str) -> AsyncqError:
    """What a failed command means to users, with what to do."""
    at = redacted(url)
    if isinstance(error.__cause__, exceptions.AuthenticationError | exceptions.AuthorizationError):
        error = error.__cause__  # redis-py wraps what went wrong while it connected.
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return ServerRefused(f"{at} does not let us in: {_sentence(error)}. Check the user and password of the URL")
    if isinstance(error, exceptions.NoPermissionError):
        return ServerRefused(f"{at} refuses: {error}. The user of the URL lacks a permission")
    if isinstance(error, exceptions.OutOfMemoryError):
        return ServerRefused(
            f"{at} is out of memory and takes no jobs: {error}. Raise its maxmemory or drain the queues"
        )
    if isinstance(error, exceptions.ReadOnlyError):
        return ServerUnavailable(f"{at} is a replica now: {error}. Waiting for the new master")
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError | TimeoutError | OSError):
        return ServerUnavailable(f"{at} does not answer: {_sentence(error)}. Is the server running, and the URL right?")
    if "WRONGTYPE" in str(error):
        return ServerRefused(
            f"{at} holds something else under a key of this queue: {error}. "
            "Another program uses the same names; choose another queue name or database"
        )
    return ServerRefused(f"{at} refuses: {error}")


def _sentence(error: BaseException) -> str:
    """What it says, without the full stop it may end in."""
    return str(error).rstrip(".") or type(error).__name__

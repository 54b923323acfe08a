"""Which queue a command is about: `--app module:queue`, `--queue NAME`, or the only one there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import typer

from asyncq import connect
from asyncq.cli.find import find_queue
from asyncq.errors import ConfigError, ServerUnavailable
from asyncq.link import Link
from asyncq.overview import Catalogued, catalogue
from asyncq.queue import Queue

__all__ = ["AppOption", "JsonOption", "QueueOption", "UrlOption", "from_catalogue", "linked", "opened", "run"]

T = TypeVar("T")

AppOption = Annotated[
    str | None,
    typer.Option("--app", metavar="MODULE:QUEUE", envvar="ASYNCQ_APP", help="The queue, where your code has it."),
]
QueueOption = Annotated[
    str | None,
    typer.Option("--queue", "-q", metavar="NAME", help="The queue, by name. Default: the only one on the server."),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The server. Default: ASYNCQ_URL, REDIS_URL, REDIS_HOST, else the embedded one of this directory.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end."""
    return asyncio.run(main)


@asynccontextmanager
async def linked(url: str | None) -> AsyncGenerator[Link, None]:
    """A connection to the server, without any queue. Unlike a worker it starts no server that never was.

    Raises:
        ServerUnavailable: nobody answers, or there is nothing to look at.
    """
    where = connect.address(url)
    _refuse_to_start(where)
    redis, found = await connect.open_client(where)
    link = Link(redis, found)
    try:
        yield link
    finally:
        await link.aclose()


def _refuse_to_start(where: connect.Address) -> None:
    if not where.url.startswith("embedded:"):
        return
    place = connect.embedded_directory(where.url)
    if not place.exists():
        raise ServerUnavailable(
            f"{where.why}, and there is no embedded one in {place}: "
            "give --url or set ASYNCQ_URL, or run this where your workers run"
        )


@asynccontextmanager
async def opened(app: str | None, queue: str | None, url: str | None) -> AsyncGenerator[Queue, None]:
    """The queue that is meant, open.

    Raises:
        ConfigError: none, or more than one could be meant; the message lists them.
    """
    if app is not None:
        found = find_queue(app, url)
        if queue not in (None, found.name):
            raise ConfigError(f"{app} is queue {found.name}, not {queue}: give --app or --queue, not both")
        _refuse_to_start(connect.address(found.url))
    else:
        async with linked(url) as link:
            found = from_catalogue(await catalogue(link), queue, link.url)
    async with found:
        yield found


def from_catalogue(queues: dict[str, Catalogued], name: str | None, url: str) -> Queue:
    """The queue of this name, or the only one."""
    at, known = connect.redacted(url), ", ".join(queues) or "none"
    if name is None:
        if len(queues) != 1:
            what = "there are several queues" if queues else "there is no queue yet"
            raise ConfigError(f"{what} on {at}: {known}. Say which one with --queue NAME or --app module:queue")
        name = next(iter(queues))
    elif name not in queues:
        raise ConfigError(f"there is no queue {name} on {at}; there is: {known}")
    about = queues[name]
    return Queue(name, url=url, lanes=about.lanes, partitions=about.partitions)

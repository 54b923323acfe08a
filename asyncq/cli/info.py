"""`asyncq info`: queues, lanes and workers at a glance, once or all the time."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from asyncq import connect
from asyncq.cli.output import ago, print_json, print_table, rich_table, text
from asyncq.cli.target import AppOption, JsonOption, QueueOption, UrlOption, linked, opened, run
from asyncq.errors import ConfigError
from asyncq.link import Link
from asyncq.monitor import Monitor
from asyncq.overview import Overview, ServerInfo, catalogue, overview, per_second, server_info

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["info"]

MINUTES = 5
REFRESH_S = 1.0
COUNTED = ("enqueued", "succeeded", "retried", "dead", "cancelled", "crashed")

Section = tuple[str, list[str], list[list[str]]]


def info(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every second, until Ctrl-C.")] = False,
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Show all queues of the server, or one: lanes, workers, and what happened in the last five minutes."""
    if watch and (json or not sys.stdout.isatty()):
        raise ConfigError("--watch is for a terminal; for a program, call `asyncq info --json` as often as you like")
    if watch:
        run(_watch(app, queue, url))
        return
    server, queues = run(_look(app, queue, url))
    if json:
        print_json({"server": server, "queues": queues})
        return
    print(_headline(server, None))
    for title, headers, rows in [section for each in queues for section in _sections(each)]:
        print(f"\n{title}")
        if rows:
            print_table(headers, rows)
    if not queues:
        print("no queue yet")


async def _look(app: str | None, queue: str | None, url: str | None) -> tuple[ServerInfo, list[Overview]]:
    if app is not None:
        async with opened(app, queue, url) as found:
            return await server_info(found.link), [await overview(found.monitors, MINUTES)]
    async with linked(url) as link:
        return await server_info(link), await _queues(link, queue)


async def _queues(link: Link, only: str | None) -> list[Overview]:
    known = await catalogue(link)
    if only is not None and only not in known:
        at = connect.redacted(link.url)
        raise ConfigError(f"there is no queue {only} on {at}; there is: {', '.join(known) or 'none'}")
    return [
        await overview([Monitor(link, name, about.lanes, n) for n in range(about.partitions)], MINUTES)
        for name, about in known.items()
        if only in (None, name)
    ]


async def _watch(app: str | None, queue: str | None, url: str | None) -> None:
    from rich.live import Live

    if app is not None:
        async with opened(app, queue, url) as found:
            url, queue = found.link.url, found.name
    async with linked(url) as link:
        with Live(screen=True, auto_refresh=False) as live:
            while True:
                server = await server_info(link)
                live.update(_screen(server, link.url, await _queues(link, queue)), refresh=True)
                await asyncio.sleep(REFRESH_S)


def _screen(server: ServerInfo, url: str, queues: list[Overview]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(_headline(server, url))]
    for title, headers, rows in [section for each in queues for section in _sections(each)]:
        parts += [Text(), Text(title, style="bold")]
        if rows:
            parts.append(rich_table(headers, rows))
    return Group(*parts)


def _headline(server: ServerInfo, url: str | None) -> str:
    mib = server.used_memory / (1 << 20)
    limit = f" of {server.max_memory / (1 << 20):.0f}" if server.max_memory else ""
    at = f" at {connect.redacted(url)}" if url else ""
    return f"{server.name} {server.version}{at}, {mib:.0f}{limit} MiB, {server.clients} connections"


def _sections(queue: Overview) -> list[Section]:
    """A queue as titles and tables."""
    title = f"queue {queue.queue}"
    title += f", {queue.partitions} partitions" if queue.partitions > 1 else ""
    title += ", PAUSED" if queue.paused else ""
    title += f": {queue.queued} queued, {queue.running} running, {queue.scheduled} scheduled, {queue.dead} dead"
    lanes = [[each.lane, text(each.queued), text(each.running), _yes(each.paused)] for each in queue.lanes]
    totals = [text(sum(row[name] for row in queue.minutes)) for name in COUNTED]
    rates = [f"{per_second(queue.minutes, name):.1f}" for name in COUNTED]
    return [
        (title, ["lane", "queued", "running", "paused"], lanes),
        (
            f"last {len(queue.minutes)} minutes",
            ["", *COUNTED],
            [["jobs", *totals], ["a second", *rates]],
        ),
        (
            f"{len(queue.alive)} worker(s) alive",
            _WORKER_HEADERS,
            [_worker(queue, n) for n in range(len(queue.workers))],
        ),
    ]


_WORKER_HEADERS = ["worker", "state", "running", "succeeded", "retried", "dead", "seen", "lag ms", "MiB", "lanes"]


def _worker(queue: Overview, number: int) -> list[str]:
    worker = queue.workers[number]
    state = "lost" if worker.is_late else worker.state
    running = f"{worker.running}/{worker.concurrency}"
    counts = [text(worker.succeeded), text(worker.retried), text(worker.dead)]
    about = [ago(worker.seen_ms), text(worker.lag_ms), text(worker.memory_mib), ", ".join(worker.lanes)]
    return [worker.name, state, running, *counts, *about]


def _yes(value: bool) -> str:
    return "paused" if value else ""

"""`asyncq dev`: everything to try an application out, with one command."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer

from asyncq import connect, embedded
from asyncq.cli.find import find_queue
from asyncq.cli.output import note
from asyncq.cli.reload import reload_for_ever
from asyncq.cli.target import UrlOption
from asyncq.cli.worker import LogLevelOption, start_logging, worker_command
from asyncq.config import from_environment

__all__ = ["dev"]

GRACE_S = 2.0
"""Nobody wants to wait for long when a file was saved."""


def dev(
    app: Annotated[str, typer.Argument(help="The queue: module:queue.")],
    concurrency: Annotated[int | None, typer.Option("--concurrency", "-c", help="Jobs at once.")] = None,
    grace: Annotated[float, typer.Option("--grace", help="Seconds that running jobs get at a restart.")] = GRACE_S,
    url: UrlOption = None,
    log_level: LogLevelOption = "info",
) -> None:
    """Develop: a server if none is configured, and a worker that restarts when the code changes."""
    queue = find_queue(app, url)
    where = connect.address(queue.url)
    if where.url.startswith("embedded:"):
        server = embedded.ensure(connect.embedded_directory(where.url))
        started = "started" if server.started else "running"
        place = f"embedded {server.name} {server.version}, {started} in {server.directory} ({server.url})"
    else:
        place = str(where)
    for line in (
        f"queue   {queue.name}, lanes {', '.join(queue.settings.lanes)}",
        f"tasks   {', '.join(sorted(queue.tasks)) or 'none yet'}",
        f"server  {place}",
        f"code    {os.getcwd()}: the worker restarts when a .py file changes",
        f"try     asyncq enqueue {app} {next(iter(sorted(queue.tasks)), 'TASK')} ...   asyncq info --app {app}",
        "end     Ctrl-C",
    ):
        note(line)
    start_logging(log_level)
    settings = from_environment(concurrency=concurrency, grace=grace)
    raise typer.Exit(asyncio.run(reload_for_ever(worker_command(app, settings, url, log_level), grace)))

"""`asyncq server`: the embedded server of a directory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from asyncq import embedded
from asyncq.cli.output import print_fields, print_json
from asyncq.cli.target import JsonOption

__all__ = ["commands"]

commands = typer.Typer(no_args_is_help=True, help="Start, stop or show the embedded server of a directory.")

DirOption = Annotated[Path, typer.Option("--dir", help="Where its data is.")]
HERE = Path(".asyncq")


@commands.command()
def start(
    directory: DirOption = HERE,
    idle: Annotated[
        float | None, typer.Option("--idle", help="Stop by itself when unused for so many seconds. Default: never.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Start the server, unless it runs. It outlives this command and your terminal."""
    _show(embedded.ensure(directory, idle_s=math.inf if idle is None else idle), json)


@commands.command()
def stop(directory: DirOption = HERE, json: JsonOption = False) -> None:
    """Stop the server. What was written is there at the next start."""
    stopped = embedded.stop(directory)
    if json:
        print_json({"stopped": stopped})
    else:
        print(f"stopped the server in {directory}" if stopped else f"no server runs in {directory}")


@commands.command()
def status(directory: DirOption = HERE, json: JsonOption = False) -> None:
    """Show the server. Exits with 1 if none runs."""
    server = embedded.status(directory)
    if server is not None:
        _show(server, json)
        return
    if json:
        print_json({"running": False, "directory": str(directory.resolve())})
    else:
        print(f"no server runs in {directory}")
    raise typer.Exit(1)


def _show(server: embedded.Server, json: bool) -> None:
    about = {
        "running": True,
        "started": server.started,
        "url": server.url,
        "directory": str(server.directory),
        "name": server.name,
        "version": server.version,
        "origin": server.origin,
        "pid": server.pid,
    }
    if json:
        print_json(about)
    else:
        about["running"] = "started now" if server.started else "yes"
        del about["started"]
        print_fields((name, str(value)) for name, value in about.items())

"""`asyncq demo`: a server, workers and a few real failures, on the Python files of a folder.

demo_run   runs it
demo_show  shows how far it is and what it came to
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from asyncq.cli.output import print_json
from asyncq.errors import AsyncqError

__all__ = ["demo"]

INTERRUPTED = 130


def demo(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Whose Python files to measure; the standard library's if not given.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(help="How many files at most.", min=1)] = 3000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON and nothing else.")] = False,
) -> None:
    """Start a server and workers, run one job a file, break things on purpose, and show what became of it.

    Everything is kept in ./.asyncq, so that the dead letters can be looked at afterwards.
    """
    # Here and not above: other commands need not wait until all this is imported.
    from asyncq.cli import demo_run, demo_show

    screen = demo_show.Screen(quiet=as_json)
    try:
        summary = demo_run.run(folder or demo_run.standard_library(), limit, screen)
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.say("stopped; the workers are gone, the server goes when nobody has used it for a minute")
        raise typer.Exit(INTERRUPTED) from None
    except (demo_run.DemoFailed, AsyncqError) as error:
        typer.echo(f"asyncq demo: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        print_json(summary)
    else:
        demo_show.print_summary(summary)

"""All commands together, and what becomes of their errors."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import asyncq
from asyncq.cli import dead, demo, dev, doctor, enqueue, info, jobs, lanes, orders, server, worker
from asyncq.errors import ArgumentError, AsyncqError, ConfigError, PayloadTooLarge, UnknownTask

__all__ = ["app", "main"]

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


class Commands(TyperGroup):
    """Makes one line on stderr of an error that users can do something about."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AsyncqError as error:
            print(f"asyncq: {error}", file=sys.stderr)
            misused = isinstance(error, ConfigError | UnknownTask | ArgumentError | PayloadTooLarge)
            raise typer.Exit(MISUSED if misused else FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="asyncq",
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    # Boxes and colours are for people; plain text is for everything else.
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"asyncq {asyncq.__version__}")
        raise typer.Exit


@app.callback()
def asyncq_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Job queues on Redis Streams: run workers, look at queues, steer them.

    Commands that look at a queue take --app module:queue or --queue NAME; without either they mean the only queue
    on the server. They exit with 0, with 1 when something is wrong, with 2 when they were called wrongly.
    """


RUN, LOOK, STEER, CARE = "Run", "Look", "Steer", "Take care of the server"

app.command("worker", rich_help_panel=RUN)(worker.worker)
app.command("dev", rich_help_panel=RUN, short_help="Develop: a worker that restarts when the code changes.")(dev.dev)
app.command("demo", rich_help_panel=RUN, short_help="Watch it work, with a few things broken on purpose.")(demo.demo)
app.command("enqueue", rich_help_panel=RUN)(enqueue.enqueue)
app.command("info", rich_help_panel=LOOK, short_help="Show queues: lanes, workers and the last minutes.")(info.info)
app.command("jobs", rich_help_panel=LOOK, short_help="List jobs, of one state or all.")(jobs.jobs)
app.command("job", rich_help_panel=LOOK)(jobs.job)
app.command("cancel", rich_help_panel=STEER, short_help="Cancel jobs, waiting or running.")(jobs.cancel)
app.add_typer(dead.commands, name="dead", rich_help_panel=STEER)
app.command("pause", rich_help_panel=STEER)(lanes.pause)
app.command("resume", rich_help_panel=STEER)(lanes.resume)
app.command("empty", rich_help_panel=STEER)(lanes.empty)
app.command("quiet", rich_help_panel=STEER)(orders.quiet)
app.command("stop", rich_help_panel=STEER)(orders.stop)
app.command("stacks", rich_help_panel=LOOK)(orders.stacks)
app.command("health", rich_help_panel=CARE)(doctor.health)
app.command("doctor", rich_help_panel=CARE, short_help="Look whether the server is fit to keep jobs.")(doctor.doctor)
app.add_typer(server.commands, name="server", rich_help_panel=CARE)


def main() -> None:
    """The entry point."""
    app(prog_name="asyncq")

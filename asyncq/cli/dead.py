"""`asyncq dead`: look at dead letters, replay them, forget them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, Any

import typer

from asyncq import dead, lifecycle
from asyncq.cli.jobs import show_job
from asyncq.cli.output import ago, print_json, print_table, short
from asyncq.cli.target import AppOption, JsonOption, QueueOption, UrlOption, opened, run
from asyncq.dead import DeadFilter
from asyncq.errors import AsyncqError, ConfigError
from asyncq.job import JobInfo
from asyncq.queue import Queue

__all__ = ["commands"]

commands = typer.Typer(no_args_is_help=True, help="Look at dead letters, replay them, forget them.")

IdsArgument = Annotated[list[str] | None, typer.Argument(help="Only these jobs.")]
TaskOption = Annotated[str, typer.Option("--task", help="Only of this task.")]
ErrorOption = Annotated[str, typer.Option("--error", help="Only those whose error has this text in it.")]
ReasonOption = Annotated[
    str, typer.Option("--reason", help=f"Only those dead for this reason: {', '.join(lifecycle.REASONS)}.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Every dead letter of the queue.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many, the oldest first.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say how many it would be.")]


class NoLetter(AsyncqError):
    """There is no such dead letter."""


@commands.command("list")
def list_letters(
    ids: IdsArgument = None,
    task: TaskOption = "",
    error: ErrorOption = "",
    reason: ReasonOption = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the latest first.")] = 20,
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """List dead letters, the latest first."""
    which = _filter(ids, task, error, reason)

    async def main() -> tuple[list[JobInfo], int]:
        async with opened(app, queue, url) as found:
            total = sum([(await monitor.counts())["dead"] for monitor in found.monitors])
            return await _infos(found, which, limit), total

    infos, total = run(main())
    if json:
        print_json(infos)
        return
    if not infos:
        print(f"no such dead letters; there are {total} in all" if total else "no dead letters")
        return
    print_table(
        ["id", "task", "lane", "reason", "attempts", "crashes", "died", "error"],
        [(i.id, i.task, i.lane, i.reason, i.attempt, i.crashes, ago(i.ended_ms), short(i.error, 100)) for i in infos],
    )
    if len(infos) == limit < total:
        print(f"... {total} in all: see --limit")


@commands.command()
def show(
    ids: Annotated[list[str], typer.Argument(help="Their ids.")],
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Show dead letters in full, with the traceback."""

    async def main() -> list[JobInfo]:
        async with opened(app, queue, url) as found:
            return await _infos(found, DeadFilter(ids=tuple(ids)), None)

    infos = run(main())
    missing = sorted(set(ids) - {info.id for info in infos})
    if json:
        print_json(infos)
    else:
        for number, info in enumerate(infos):
            print("\n" if number else "", end="")
            show_job(info)
    if missing:
        raise NoLetter(f"no dead letter: {', '.join(missing)}")


@commands.command()
def replay(
    ids: IdsArgument = None,
    task: TaskOption = "",
    error: ErrorOption = "",
    reason: ReasonOption = "",
    every: AllOption = False,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Give dead letters another life: back to their lanes, attempts and crashes at 0.

    Which ones: ids, or --task, --error and --reason, all of which must hold; or --all.
    """
    which = _chosen(ids, task, error, reason, every)

    async def main() -> int:
        async with opened(app, queue, url) as found:
            return await _act(found, which, limit, dry_run, dead.replay)

    _report(run(main()), "replayed", dry_run, json, which)


@commands.command()
def purge(
    ids: IdsArgument = None,
    task: TaskOption = "",
    error: ErrorOption = "",
    reason: ReasonOption = "",
    every: AllOption = False,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Forget dead letters for good. There is no way back.

    Which ones: as for `replay`.
    """
    which = _chosen(ids, task, error, reason, every)

    async def main() -> int:
        async with opened(app, queue, url) as found:
            if not (yes or dry_run):
                count = await _act(found, which, limit, True, dead.purge)
                typer.confirm(f"Forget {count} dead letter(s) of queue {found.name} for good?", abort=True, err=True)
            return await _act(found, which, limit, dry_run, dead.purge)

    _report(run(main()), "purged", dry_run, json, which)


def _filter(ids: list[str] | None, task: str, error: str, reason: str) -> DeadFilter:
    if reason and reason not in lifecycle.REASONS:
        raise ConfigError(f"--reason {reason}: it is one of {', '.join(lifecycle.REASONS)}")
    return DeadFilter(ids=tuple(ids or ()), task=task, error=error, reason=reason)


def _chosen(ids: list[str] | None, task: str, error: str, reason: str, every: bool) -> DeadFilter:
    """A filter that somebody chose: what is done to every letter must be asked for."""
    which = _filter(ids, task, error, reason)
    if every == (which != DeadFilter()):
        raise ConfigError("say which dead letters: ids, --task, --error or --reason, or else --all")
    return which


async def _infos(queue: Queue, which: DeadFilter, limit: int | None) -> list[JobInfo]:
    async with aclosing(dead.find(queue, which, limit=limit)) as letters:
        return [letter.info async for _, letter in letters]


async def _act(
    queue: Queue, which: DeadFilter, limit: int | None, dry_run: bool, act: Callable[..., Awaitable[int]]
) -> int:
    if dry_run:
        return len(await _infos(queue, which, limit))
    return await act(queue, which, limit=limit)


def _report(count: int, done: str, dry_run: bool, json: bool, which: DeadFilter) -> None:
    about: dict[str, Any] = {done: 0 if dry_run else count, "matching": count}
    if json:
        print_json(about)
    else:
        print(f"{'would have ' if dry_run else ''}{done} {count} dead letter(s)")
    if count < len(which.ids):
        raise NoLetter(f"{len(which.ids) - count} of these jobs were no dead letters (any more)")

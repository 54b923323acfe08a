"""`asyncq health` for machines that ask often, `asyncq doctor` for people who wonder."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from asyncq.cli.output import print_json
from asyncq.cli.target import AppOption, JsonOption, QueueOption, UrlOption, linked, opened, run
from asyncq.doctor import Check, examine, refusal_to_write
from asyncq.errors import ConfigError, ServerRefused, ServerUnavailable
from asyncq.overview import overview

__all__ = ["doctor", "health"]


def health(
    min_workers: Annotated[int, typer.Option("--min-workers", min=0, help="So many workers must be alive.")] = 1,
    max_queued: Annotated[
        int | None, typer.Option("--max-queued", min=0, help="No more than so many jobs may wait.")
    ] = None,
    max_dead: Annotated[
        int | None, typer.Option("--max-dead", min=0, help="No more than so many dead letters.")
    ] = None,
    max_wait: Annotated[
        float | None, typer.Option("--max-wait", min=0, help="No job may have waited for longer than so many seconds.")
    ] = None,
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Exit with 0 if the queue is healthy, with 1 if not, and say why.

    Healthy: the server answers and takes jobs, and workers are alive.
    """

    async def main() -> dict[str, Any]:
        async with opened(app, queue, url) as found:
            problems = []
            if refusal := await refusal_to_write(found.link):
                problems.append(f"the server takes no jobs: {refusal}")
            seen = await overview(found.monitors, minutes=1)
            oldest_s = max([await monitor.oldest_wait_s() for monitor in found.monitors])
            about = {
                "queue": found.name,
                "workers": len(seen.alive),
                "queued": seen.queued,
                "running": seen.running,
                "scheduled": seen.scheduled,
                "dead": seen.dead,
                "oldest_wait_s": round(oldest_s, 3),
            }
            if len(seen.alive) < min_workers:
                problems.append(f"{len(seen.alive)} worker(s) alive, {min_workers} wanted")
            if max_queued is not None and seen.queued > max_queued:
                problems.append(f"{seen.queued} jobs wait, at most {max_queued} wanted")
            if max_dead is not None and seen.dead > max_dead:
                problems.append(f"{seen.dead} dead letters, at most {max_dead} wanted")
            if max_wait is not None and oldest_s > max_wait:
                problems.append(f"a job has waited for {oldest_s:.1f} s, at most {max_wait:g} wanted")
            return {"status": "unhealthy" if problems else "healthy", **about, "problems": problems}

    try:
        found = run(main())
    except ConfigError:
        raise
    except (ServerUnavailable, ServerRefused) as error:
        found = {"status": "unhealthy", "problems": [str(error)]}
    if json:
        print_json(found)
    else:
        print(found["status"])
        for problem in found["problems"]:
            print(problem, file=sys.stderr)
    raise typer.Exit(1 if found["problems"] else 0)


def doctor(url: UrlOption = None, json: JsonOption = False) -> None:
    """Look whether the server is fit to keep jobs, and say what to do where it is not. Exits with 1 on a failure."""

    async def main() -> tuple[str, list[Check]]:
        async with linked(url) as link:
            return link.url, await examine(link)

    _, checks = run(main())
    if json:
        print_json(checks)
    else:
        _print(checks)
    raise typer.Exit(1 if any(check.level == "fail" for check in checks) else 0)


def _print(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    width = max(len(check.name) for check in checks)
    console = Console(soft_wrap=True, highlight=False)
    for check in checks:
        line = Text(f"{check.level:<4}", style=colours[check.level])
        line.append(f"  {check.name:<{width}}  {check.text}", style="default")
        console.print(line)
        if check.advice:
            console.print(Text(f"      {'':<{width}}  → {check.advice}"))

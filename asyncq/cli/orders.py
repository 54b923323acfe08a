"""`asyncq stacks`, `quiet` and `stop`: orders to workers, wherever they run."""

from __future__ import annotations

from typing import Annotated

import typer

from asyncq.cli.output import print_json
from asyncq.cli.target import AppOption, JsonOption, QueueOption, UrlOption, opened, run
from asyncq.errors import AsyncqError
from asyncq.overview import overview

__all__ = ["quiet", "stacks", "stop"]

EVERY = "*"
WorkerArgument = Annotated[str, typer.Argument(help="Its name, as `asyncq info` shows it. Default: all.")]


class NoWorker(AsyncqError):
    """Nobody is there to be given the order."""


def stacks(
    worker: WorkerArgument = EVERY,
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Have workers log where each of their running jobs stands. Look into the log of the worker."""
    _order("stacks", worker, app, queue, url, json, "logs its stacks")


def quiet(
    worker: WorkerArgument = EVERY,
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Have workers claim nothing more and finish what runs. They stay until they are stopped."""
    _order("quiet", worker, app, queue, url, json, "is told to be quiet")


def stop(
    worker: WorkerArgument = EVERY,
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Stop workers as SIGTERM does; a second time: without grace."""
    _order("stop", worker, app, queue, url, json, "is told to stop")


def _order(order: str, worker: str, app: str | None, queue: str | None, url: str | None, json: bool, said: str) -> None:
    async def main() -> list[str]:
        async with opened(app, queue, url) as found:
            alive = (await overview(found.monitors, minutes=1)).alive
            names = [each.name for each in alive if worker in (EVERY, each.name, each.consumer)]
            if not names:
                known = ", ".join(each.name for each in alive) or "none"
                whom = "any worker" if worker == EVERY else f"a worker {worker}"
                raise NoWorker(f"queue {found.name} does not have {whom}; alive: {known}")
            # Every worker listens to the channels of all partitions: two orders to stop would mean at once.
            await found.link.command("PUBLISH", found.stores[0].keys.control, f"{order} {worker}")
            return names

    names = run(main())
    if json:
        print_json({"order": order, "workers": names})
    else:
        for name in names:
            print(f"{name} {said}")

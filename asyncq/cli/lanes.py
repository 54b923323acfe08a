"""`asyncq pause`, `resume` and `empty`: a lane, or the whole queue."""

from __future__ import annotations

from typing import Annotated

import typer

from asyncq.cli.output import print_json
from asyncq.cli.target import AppOption, JsonOption, QueueOption, UrlOption, opened, run
from asyncq.overview import overview

__all__ = ["empty", "pause", "resume"]

LaneArgument = Annotated[str | None, typer.Argument(help="Only this lane. Default: all of the queue.")]


def pause(
    lane: LaneArgument = None,
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Have workers claim nothing more. Running jobs go on, new ones may be enqueued. Lasts until `resume`."""

    async def main() -> str:
        async with opened(app, queue, url) as found:
            await found.pause(lane)
            return found.name

    name = run(main())
    if json:
        print_json({"queue": name, "lane": lane, "paused": True})
    else:
        print(f"paused {_what(name, lane)}")


def resume(
    lane: LaneArgument = None,
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Undo `pause`. Without a lane: of the queue and every lane of it."""

    async def main() -> tuple[str, bool]:
        async with opened(app, queue, url) as found:
            await found.resume(lane)
            return found.name, (await overview(found.monitors, minutes=1)).paused

    name, paused = run(main())
    if json:
        print_json({"queue": name, "lane": lane, "paused": paused})
    elif paused:
        print(f"resumed {_what(name, lane)}; but queue {name} as a whole is paused: `asyncq resume` without a lane")
    else:
        print(f"resumed {_what(name, lane)}")


def empty(
    lane: LaneArgument = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Remove all jobs that wait or are scheduled. Running ones and dead letters stay. There is no way back."""

    async def main() -> tuple[str, int]:
        async with opened(app, queue, url) as found:
            if lane is not None:
                found.settings.lane_number(lane)
            if not yes:
                whole = await overview(found.monitors, minutes=1)
                waiting = sum(each.queued for each in whole.lanes if lane in (None, each.lane))
                scheduled = f" and what of {whole.scheduled} scheduled is for it" if whole.scheduled else ""
                question = f"Remove {waiting} waiting job(s){scheduled} from {_what(found.name, lane)}?"
                typer.confirm(question, abort=True, err=True)
            return found.name, await found.empty(lane)

    name, count = run(main())
    if json:
        print_json({"queue": name, "lane": lane, "removed": count})
    else:
        print(f"removed {count} job(s) from {_what(name, lane)}")


def _what(queue: str, lane: str | None) -> str:
    return f"lane {lane} of queue {queue}" if lane else f"queue {queue}"

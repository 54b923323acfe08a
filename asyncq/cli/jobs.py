"""`asyncq job`, `jobs` and `cancel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from asyncq import lifecycle
from asyncq.cli.output import ago, duration, moment, plain, print_fields, print_json, print_table, short
from asyncq.cli.target import AppOption, JsonOption, QueueOption, UrlOption, opened, run
from asyncq.errors import AsyncqError, ConfigError
from asyncq.job import JobInfo
from asyncq.queue import Queue

__all__ = ["cancel", "job", "jobs", "show_job"]

ALL = "all"
IN_ORDER: tuple[lifecycle.State, ...] = (
    "running",
    "queued",
    "retrying",
    "scheduled",
    "failed",
    "expired",
    "cancelled",
    "succeeded",
)


def job(
    job_id: Annotated[str, typer.Argument(help="Its id.")],
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Show everything that is known of a job. Exits with 1 if that is nothing."""

    async def main() -> JobInfo:
        async with opened(app, queue, url) as found:
            return await (await found.job(job_id)).info()

    info = run(main())
    if json:
        print_json(info)
    else:
        show_job(info)


def show_job(info: JobInfo) -> None:
    """All of a job, for people."""
    ran_ms = info.ended_ms - info.started_ms if info.ended_ms and info.started_ms else None
    print_fields(
        [
            ("id", info.id),
            ("queue", info.queue),
            ("state", info.state),
            ("task", info.task),
            ("lane", info.lane),
            ("arguments", repr(info.args) if info.args is not None else None),
            ("tags", ", ".join(info.tags)),
            ("attempt", info.attempt),
            ("crashes", info.crashes or None),
            ("enqueued", moment(info.enqueued_ms)),
            ("due", moment(info.due_ms)),
            ("expires", moment(info.expires_ms)),
            ("started", moment(info.started_ms)),
            ("ended", moment(info.ended_ms)),
            ("took", duration(ran_ms / 1000) if ran_ms is not None else None),
            ("worker", info.worker),
            ("progress", f"{info.progress:g} %" if info.progress is not None else None),
            ("said", repr(info.meta) if info.meta else None),
            ("reason", f"{info.reason}: {lifecycle.REASONS.get(info.reason, '')}" if info.reason else None),
            ("value", repr(plain(info.value)) if info.state == "succeeded" else None),
            ("error", info.error),
            ("traceback", info.traceback),
        ]
    )


def jobs(
    state: Annotated[str, typer.Option("--state", "-s", help=f"One of {', '.join(IN_ORDER)}, or all.")] = ALL,
    lane: Annotated[str, typer.Option("--lane", help="Only of this lane.")] = "",
    task: Annotated[str, typer.Option("--task", help="Only of this task.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many of each state.")] = 20,
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """List jobs: live ones in the order in which they come next, ended ones latest first.

    The work this makes for the server is bounded: of each state the first 10,000 jobs are searched. Jobs that succeeded
    or were cancelled are found only as long as their results are kept, by scanning at most 200,000 keys of the
    database, and they know no lane.
    """
    states = _states(state)

    async def main() -> list[JobInfo]:
        async with opened(app, queue, url) as found:
            if lane:
                found.settings.lane_number(lane)
            return [job for each in states for job in await _of_state(found, each, lane, task, limit)]

    found = run(main())
    if json:
        print_json(found)
        return
    if not found:
        print("no such jobs")
        return
    print_table(
        ["id", "state", "task", "lane", "attempt", "when", "worker", "about"],
        [
            (info.id, info.state, info.task, info.lane, info.attempt, ago(_when(info)), _worker(info), _about(info))
            for info in found
        ],
    )


def _states(state: str) -> Sequence[lifecycle.State]:
    if state == ALL:
        return IN_ORDER
    for known in IN_ORDER:
        if state == known:
            return [known]
    raise ConfigError(f"--state {state}: it is one of {', '.join(IN_ORDER)}, or {ALL}")


async def _of_state(queue: Queue, state: lifecycle.State, lane: str, task: str, limit: int) -> list[JobInfo]:
    """Of all partitions together."""
    found = [job for monitor in queue.monitors for job in await monitor.jobs(state, lane=lane, task=task, limit=limit)]
    if queue.settings.partitions > 1:
        ended = state in ("failed", "expired", "cancelled", "succeeded")
        found.sort(key=lambda job: _when(job) or 0, reverse=ended)
    return found[:limit]


def _when(info: JobInfo) -> int | None:
    return info.ended_ms or info.due_ms or info.enqueued_ms


def _worker(info: JobInfo) -> str:
    """Its name. A running job is held by a consumer: the name and what makes it unique."""
    return info.worker.rpartition(":")[0] if info.state == "running" else info.worker


def _about(info: JobInfo) -> str:
    if info.progress is not None:
        return f"{info.progress:g} %"
    return short(info.error or (info.value if info.state == "succeeded" else info.args))


class NotCancelled(AsyncqError):
    """Some of the jobs could not be cancelled."""


def cancel(
    ids: Annotated[list[str], typer.Argument(help="Their ids.")],
    app: AppOption = None,
    queue: QueueOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Cancel jobs: at once if they wait, as soon as their code stops if they run.

    Exits with 1 if one had ended or is unknown; the others are cancelled all the same.
    """

    async def main() -> dict[str, bool]:
        async with opened(app, queue, url) as found:
            return {job_id: await found.cancel(job_id) for job_id in ids}

    cancelled = run(main())
    if json:
        print_json(cancelled)
    else:
        for job_id, done in cancelled.items():
            if done:
                print(f"{job_id} cancelled")
    if left := [job_id for job_id, done in cancelled.items() if not done]:
        raise NotCancelled(f"not cancelled, because ended, dead or unknown: {', '.join(left)}")

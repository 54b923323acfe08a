"""`asyncq worker`: one worker in this process, or several under a supervisor."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
from typing import Annotated, Any

import msgspec
import typer

from asyncq.cli import orders
from asyncq.cli.find import find_queue
from asyncq.cli.target import UrlOption
from asyncq.config import WorkerSettings, from_environment
from asyncq.errors import ConfigError
from asyncq.queue import Queue
from asyncq.worker import Worker
from asyncq.worker.supervisor import PATIENCE_S, USED_UP, Supervisor, Tether, on_signals

__all__ = ["LogLevelOption", "start_logging", "worker", "worker_command"]

LogLevelOption = Annotated[
    str, typer.Option("--log-level", envvar="ASYNCQ_LOG_LEVEL", help="debug, info, warning or error.")
]


def worker(
    app: Annotated[str, typer.Argument(help="The queue: module:queue.")],
    lanes: Annotated[list[str] | None, typer.Argument(help="Serve only these lanes.")] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", help="Jobs at once (or ASYNCQ_CONCURRENCY). Default: 100.")
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", "-p", min=1, envvar="ASYNCQ_PROCESSES", help="Worker processes.")
    ] = 1,
    burst: Annotated[
        bool | None,
        typer.Option("--burst/--no-burst", help="Stop when nothing is left to do (or ASYNCQ_BURST)."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Shown to people (or ASYNCQ_NAME). Default: host and pid.")
    ] = None,
    url: UrlOption = None,
    max_jobs: Annotated[
        int | None, typer.Option("--max-jobs", help="Stop after so many jobs (or ASYNCQ_MAX_JOBS).")
    ] = None,
    max_memory: Annotated[
        int | None,
        typer.Option("--max-memory", help="Stop when the process has grown to so many MiB (or ASYNCQ_MAX_MEMORY)."),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option("--grace", help="Seconds that jobs may go on after a stop (or ASYNCQ_GRACE). Default: 25."),
    ] = None,
    heartbeat: Annotated[
        float | None,
        typer.Option("--heartbeat", help="Seconds between signs of life (or ASYNCQ_HEARTBEAT). Default: 5."),
    ] = None,
    log_level: LogLevelOption = "info",
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart when a .py file below the working directory changes.")
    ] = False,
    tether: Annotated[int | None, typer.Option("--tether", hidden=True)] = None,
) -> None:
    """Run the jobs of a queue.

    SIGTERM and SIGINT stop it: nothing more is claimed, running jobs get the grace, the rest is handed back; a second
    one hands back at once. SIGTSTP makes it quiet: nothing more is claimed. SIGUSR2 logs where each running job stands.

    With --processes, a process that crashes is started again, and one that reached --max-jobs or --max-memory is
    replaced.

    `asyncq worker stacks` is the same as `asyncq stacks`.
    """
    if app == "stacks":
        orders.stacks(worker=(lanes or ["*"])[0], app=os.environ.get("ASYNCQ_APP"), url=url)
        return
    settings = from_environment(
        concurrency=concurrency,
        burst=burst,
        name=name,
        max_jobs=max_jobs,
        max_memory=max_memory,
        grace=grace,
        heartbeat=heartbeat,
        lanes=tuple(lanes) if lanes else None,
    )
    log_level_number(log_level)
    end = Tether(tether, settings.grace + PATIENCE_S) if tether is not None else None
    if reload:
        from asyncq.cli.reload import reload_for_ever

        start_logging(log_level)
        command = worker_command(app, settings, url, log_level, processes)
        code = asyncio.run(reload_for_ever(command, settings.grace))
    elif processes > 1:
        start_logging(log_level)
        code = asyncio.run(_supervise(app, settings, url, log_level, processes, end))
    else:
        queue = find_queue(app, url)
        start_logging(log_level)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            code = runner.run(_work(queue, settings, end))
    raise typer.Exit(code)


def worker_command(
    app: str, settings: WorkerSettings, url: str | None, log_level: str, processes: int = 1
) -> list[str]:
    """The command line that runs such a worker in another process."""
    command = [sys.executable, "-m", "asyncq", "worker", app, *settings.lanes]
    options: dict[str, Any] = {
        "--concurrency": settings.concurrency,
        "--processes": processes,
        "--name": settings.name,
        "--max-jobs": settings.max_jobs,
        "--max-memory": settings.max_memory,
        "--grace": settings.grace,
        "--heartbeat": settings.heartbeat,
        "--log-level": log_level,
    }
    if url:
        options["--url"] = url
    command += [f"{option}={value}" for option, value in options.items()]
    return [*command, "--burst" if settings.burst else "--no-burst"]


async def _work(queue: Queue, settings: WorkerSettings, tether: Tether | None) -> int:
    """One worker until it ends; the exit code."""
    worker = Worker(queue, settings=settings)
    orders = {
        "SIGTERM": worker.stop,
        "SIGINT": worker.stop,
        "SIGTSTP": worker.quiet,
        "SIGUSR2": worker.dump_stacks,
    }
    with on_signals(orders):
        if tether is None:
            await worker.run()
            return 0
        telling = asyncio.create_task(_tell_start(worker, tether))
        try:
            await worker.run()
        finally:
            telling.cancel()
        return USED_UP if worker.used_up else 0


async def _tell_start(worker: Worker, tether: Tether) -> None:
    await worker.started.wait()
    tether.started()


async def _supervise(
    app: str, settings: WorkerSettings, url: str | None, log_level: str, processes: int, tether: Tether | None
) -> int:
    def command(number: int) -> list[str]:
        one = msgspec.structs.replace(settings, name=f"{settings.name}-{number}")
        return worker_command(app, one, url, log_level)

    if tether is not None:
        tether.started()
    return await Supervisor(command, processes, settings.grace).run()


def start_logging(level: str) -> None:
    """Log to stderr, unless the application has set up logging itself; our own loggers get the level in any case.

    Called once the application is imported, which is when it may do so.
    """
    number = log_level_number(level)
    logging.getLogger("asyncq").setLevel(number)
    logging.basicConfig(level=number, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def log_level_number(level: str) -> int:
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigError(f"--log-level {level!r}: it is one of debug, info, warning, error")
    return number


def _loop_factory() -> Any:
    """uvloop, where it is installed. Chosen here and nowhere else."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop

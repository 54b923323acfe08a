"""`asyncq demo`: a server, workers and a few real failures, on the Python files of a folder."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import sys
import sysconfig
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import anyio
import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from asyncq import embedded
from asyncq.cli.worker import worker_command
from asyncq.clock import monotonic_s, now_ms
from asyncq.config import WorkerSettings
from asyncq.demo import Injected, measure, queue
from asyncq.embedded import keeper
from asyncq.errors import AsyncqError
from asyncq.handle import Job
from asyncq.job import JobInfo

__all__ = ["Summary", "demo"]

PLACE = Path(".asyncq")
LOG = PLACE / "demo.log"
FAULT_EVERY = 40
LOOK_S = 0.1
SAY_S = 2.0
STUCK_S = 60.0
DEATHS = 10
"""A worker that dies more often than the demo makes it is broken, and so is the demo."""
SKIPPED = {"site-packages", "dist-packages", "__pycache__", "node_modules"}


class Spread(msgspec.Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p99: float


class Summary(msgspec.Struct, kw_only=True):
    """What the demo came to; `--json` prints this.

    done:         jobs that returned
    retried:      jobs that needed more than one attempt
    dead_letters: by reason
    crashed:      leases that ran out because a worker was killed; failures are counted apart
    files_s:      from the first enqueue until the last job that was not poison had ended
    poison_s:     until the poison job was buried
    latency_ms:   from enqueue to the end, waiting included; run_ms: in the task
    """

    folder: str
    jobs: int
    done: int
    retried: int
    dead_letters: dict[str, int]
    crashed: int
    workers_killed: int
    enqueue_s: float
    files_s: float
    poison_s: float
    jobs_per_s: float
    latency_ms: Spread
    run_ms: Spread
    lines: int
    functions: int
    classes: int
    commands: dict[str, str]


class DemoFailed(Exception):
    """The demo cannot go on; the message is for the user."""


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
    place = folder or Path(sysconfig.get_paths()["stdlib"])
    console = Console(stderr=True, quiet=as_json)
    try:
        paths = _python_files(place, limit)
        with _only_one(), open(LOG, "wb") as log:
            console.print(f"{len(paths)} files of {place}; server and data in {PLACE.resolve()}", soft_wrap=True)
            summary = asyncio.run(_demo(place, paths, console, log))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped; the workers are gone, the server goes when nobody has used it for a minute")
        raise typer.Exit(130) from None
    except (DemoFailed, AsyncqError) as error:
        typer.echo(f"asyncq demo: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(summary), indent=2).decode())
    else:
        _print(summary, Console())


async def _demo(place: Path, paths: list[Path], console: Console, log: BinaryIO) -> Summary:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _cancel(asyncio.current_task()))
    async with queue:
        await _forget_last_demo()
        async with _workers(["files", "files", "risky"], log) as killed:
            summary = await _measure_all(place, paths, console, killed)
        # The killed ones could not sign off.
        for worker in await queue.monitors[0].workers():
            await queue.stores[0].retire(worker.consumer)
        return summary


def _cancel(task: asyncio.Task[Any] | None) -> Callable[[], object]:
    assert task is not None
    return task.cancel


def _python_files(place: Path, limit: int) -> list[Path]:
    found = (path for path in place.rglob("*.py") if not SKIPPED & set(path.parts[len(place.parts) :]))
    paths = sorted(islice((path.resolve() for path in found if path.is_file()), limit))
    if not paths:
        raise DemoFailed(f"there is no Python file in {place}")
    return paths


@contextmanager
def _only_one() -> Iterator[None]:
    """Two demos in one directory would count each other's jobs."""
    embedded.ensure(PLACE)
    try:
        with keeper.held(PLACE / "demo.lock", wait_s=0):
            yield
    except TimeoutError:
        raise DemoFailed(f"another demo runs in {PLACE.resolve()}") from None


async def _forget_last_demo() -> None:
    keys = queue.stores[0].keys
    cursor = b"0"
    while True:
        cursor, found = await queue.link.command("SCAN", cursor, "MATCH", f"{keys.prefix}*", "COUNT", 1000)
        if found:
            await queue.link.command("UNLINK", *found)
        if cursor == b"0":
            return


# -- workers ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _workers(lanes: Sequence[str], log: BinaryIO) -> AsyncIterator[Counter[str]]:
    """One worker process for each lane named, started again when it dies; yields how often that was."""
    killed: Counter[str] = Counter()
    crew = [asyncio.create_task(_keep_running(lane, log, killed)) for lane in lanes]
    try:
        yield killed
    finally:
        for one in crew:
            one.cancel()
        await asyncio.gather(*crew, return_exceptions=True)


async def _keep_running(lane: str, log: BinaryIO, killed: Counter[str]) -> None:
    settings = WorkerSettings(name=f"demo-{lane}", lanes=(lane,), concurrency=1 if lane == "risky" else 4)
    command = worker_command("asyncq.demo:queue", settings, None, "info")
    while killed[lane] <= DEATHS:
        # However the demo ends, the tether ends with it, and at its other end the worker.
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    f"--tether={theirs.fileno()}",
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the demo, which then stops its workers.
                )
            try:
                await process.wait()
            finally:
                await _end(process)
        killed[lane] += 1


async def _end(process: asyncio.subprocess.Process) -> None:
    """As a deploy would end it, and if it does not end, by force."""
    if process.returncode is None:
        process.terminate()
        with anyio.move_on_after(10, shield=True):
            await process.wait()
    if process.returncode is None:
        process.kill()
        with anyio.CancelScope(shield=True):
            await process.wait()


def _tail() -> str:
    return "\n".join(LOG.read_text(errors="replace").splitlines()[-10:])


# -- jobs ---------------------------------------------------------------------------------------------------


async def _measure_all(place: Path, paths: list[Path], console: Console, killed: Counter[str]) -> Summary:
    begun_s = monotonic_s()
    jobs = await queue.enqueue_many(
        (measure.options(lane="risky") if wrong == "poison" else measure).call(str(path), wrong)
        for path, wrong in zip(paths, _injections(len(paths)), strict=True)
    )
    enqueue_s = monotonic_s() - begun_s
    counts = await _watch(len(jobs), console, killed)
    infos = await _look_at_all(jobs)
    return _summary(str(place), infos, counts, sum(killed.values()), enqueue_s)


def _injections(count: int) -> list[Injected]:
    """What is to go wrong with each job: faults all along, one accident half-way, one poison job."""
    wrong: list[Injected] = ["fault" if i % FAULT_EVERY == 0 else "" for i in range(count)]
    if count > 2:
        wrong[count // 2] = "accident"
    wrong[-1] = "poison"
    return wrong


async def _watch(total: int, console: Console, killed: Counter[str]) -> Counter[str]:
    """Show how far it is until every job has ended; returns the queue's own counters."""
    first_minute, moved_s, ended = now_ms(), monotonic_s(), 0
    with _shown(total, console) as show:
        while True:
            counts = await _counters(first_minute)
            if (now_ended := counts["succeeded"] + counts["dead"]) != ended:
                ended, moved_s = now_ended, monotonic_s()
            show(ended, counts)
            if ended >= total:
                return counts
            if max(killed.values(), default=0) > DEATHS:
                raise DemoFailed(f"a worker does not stay up. Its last words, from {LOG}:\n{_tail()}")
            if monotonic_s() - moved_s > STUCK_S:
                raise DemoFailed(f"nothing has ended for {STUCK_S:g} s. From {LOG}:\n{_tail()}")
            await anyio.sleep(LOOK_S)


async def _counters(since_ms: int) -> Counter[str]:
    """Jobs enqueued, succeeded, retried, dead and crashed since then."""
    counts: Counter[str] = Counter()
    for row in await queue.monitors[0].stats(now_ms() // 60_000 - since_ms // 60_000 + 1):
        counts.update(row)
    return counts


@contextmanager
def _shown(total: int, console: Console) -> Iterator[Callable[[int, Counter[str]], None]]:
    """A progress bar on a terminal, a line now and then elsewhere."""
    begun_s = said_s = monotonic_s()

    def words(ended: int, counts: Counter[str]) -> str:
        rate = ended / max(0.001, monotonic_s() - begun_s)
        lost = f"{counts['retried']} retried, {counts['dead']} dead-lettered, {counts['crashed']} crashed"
        return f"{rate:.0f} jobs/s, {lost}"

    if console.is_terminal:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("", total=total)
            yield lambda ended, counts: progress.update(bar, completed=ended, description=words(ended, counts))
        return

    def say(ended: int, counts: Counter[str]) -> None:
        nonlocal said_s
        if ended == total or monotonic_s() - said_s > SAY_S:
            said_s = monotonic_s()
            console.print(f"{ended} of {total} jobs, {words(ended, counts)}", soft_wrap=True)

    yield say


async def _look_at_all(jobs: Sequence[Job[Any]]) -> list[JobInfo]:
    infos: list[JobInfo] = []
    for first in range(0, len(jobs), 50):
        infos += await asyncio.gather(*(job.info() for job in jobs[first : first + 50]))
    return infos


# -- summary ------------------------------------------------------------------------------------------------


def _summary(folder: str, infos: list[JobInfo], counts: Counter[str], killed: int, enqueue_s: float) -> Summary:
    done = [info for info in infos if info.state == "succeeded"]
    begun_ms = min(info.enqueued_ms or 0 for info in infos)
    poison_ms = [(info.ended_ms or 0) - begun_ms for info in infos if info.reason == "poison"]
    others_ms = [(info.ended_ms or 0) - begun_ms for info in infos if info.reason != "poison"]
    files_s = max(others_ms, default=0) / 1000
    return Summary(
        folder=folder,
        jobs=len(infos),
        done=len(done),
        retried=sum(info.attempt > 1 for info in infos),
        dead_letters=dict(Counter(info.reason for info in infos if info.reason)),
        crashed=counts["crashed"],
        workers_killed=killed,
        enqueue_s=round(enqueue_s, 3),
        files_s=round(files_s, 1),
        poison_s=round(max(poison_ms, default=0) / 1000, 1),
        jobs_per_s=round(len(others_ms) / files_s, 1) if files_s else 0.0,
        latency_ms=_spread([(info.ended_ms or 0) - (info.enqueued_ms or 0) for info in done]),
        run_ms=_spread([info.value["run_ms"] for info in done]),
        lines=sum(info.value["lines"] for info in done),
        functions=sum(info.value["functions"] for info in done),
        classes=sum(info.value["classes"] for info in done),
        commands=_commands(infos),
    )


def _spread(values: Sequence[float]) -> Spread:
    """Median and 99th percentile, by the nearest rank."""
    if not values:
        return Spread(0.0, 0.0)
    ordered = sorted(values)
    p50, p99 = (ordered[max(0, -(-len(ordered) * percent // 100) - 1)] for percent in (50, 99))
    return Spread(round(p50, 1), round(p99, 1))


def _commands(infos: list[JobInfo]) -> dict[str, str]:
    """What to type now, and what it does."""
    program = _program()
    poison = next((info.id for info in infos if info.reason == "poison"), "")
    return {
        "the dead letters": f"{program} dead list --app asyncq.demo:queue",
        "the poison job": f"{program} job --app asyncq.demo:queue {shlex.quote(poison)}",
        "the whole queue": f"{program} info --app asyncq.demo:queue",
    }


def _program() -> str:
    """How the user called us."""
    called = Path(sys.argv[0])
    if called.name != "asyncq":
        return f"{Path(sys.executable).name} -m asyncq"
    if os.sep not in sys.argv[0]:
        return "asyncq"
    try:
        return str(called.relative_to(Path.cwd())) if called.is_absolute() else str(called)
    except ValueError:
        return str(called)


def _print(summary: Summary, console: Console) -> None:
    table = Table(title=f"{summary.jobs} jobs, one for each file", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, text in _rows(summary).items():
        table.add_row(name, text)
    console.print(table)
    console.print(f"Look at it (the data is in {PLACE}, the workers' log in {LOG}):")
    for what, command in summary.commands.items():
        console.print(f"  {command}  [dim]# {what}[/dim]", soft_wrap=True, highlight=False)


def _rows(summary: Summary) -> dict[str, str]:
    letters = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.dead_letters.items()))
    latency, run = summary.latency_ms, summary.run_ms
    found = f"{summary.lines:,} lines, {summary.functions:,} functions, {summary.classes:,} classes"
    return {
        "done": f"{summary.done}: {found}",
        "retried": f"{summary.retried}, after a fault injected into every {FAULT_EVERY}th job",
        "dead-lettered": f"{sum(summary.dead_letters.values())}: {letters}",
        "crashed": f"{summary.crashed} leases taken back from {summary.workers_killed} killed worker processes",
        "enqueued in": f"{summary.enqueue_s:.3f} s",
        "all files in": f"{summary.files_s:.1f} s, {summary.jobs_per_s:.0f} jobs/s",
        "poison buried": f"after {summary.poison_s:.1f} s, when it had killed its worker "
        f"{queue.settings.max_crashes} times",
        "run time": f"p50 {run.p50:.1f} ms, p99 {run.p99:.1f} ms",
        "enqueue to end": f"p50 {latency.p50:.0f} ms, p99 {latency.p99:.0f} ms, waiting included",
    }

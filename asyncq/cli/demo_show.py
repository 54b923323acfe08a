"""What people see of the demo: a progress bar or lines, a table at the end, and what to type next."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from asyncq.clock import monotonic_s
from asyncq.demo import FAULT_EVERY, queue
from asyncq.job import JobInfo

__all__ = ["LOG", "PLACE", "Screen", "Spread", "Summary", "commands", "print_summary"]

PLACE = Path(".asyncq")
LOG = PLACE / "demo.log"
SAY_S = 2.0


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


class Screen:
    """Where people are told how far it is: standard error. Silent if quiet."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)

    @contextmanager
    def progress(self, total: int) -> Iterator[Callable[[int, Counter[str]], None]]:
        """Yields what takes the number of ended jobs and the counters: a bar on a terminal, else lines."""
        begun_s = monotonic_s()

        def words(ended: int, counts: Counter[str]) -> str:
            rate = ended / max(0.001, monotonic_s() - begun_s)
            lost = f"{counts['retried']} retried, {counts['dead']} dead-lettered, {counts['crashed']} crashed"
            return f"{rate:.0f} jobs/s, {lost}"

        if self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
            with Progress(*columns, console=self._console) as bars:
                bar = bars.add_task("", total=total)
                yield lambda ended, counts: bars.update(bar, completed=ended, description=words(ended, counts))
        else:
            yield self._lines(total, words)

    def _lines(self, total: int, words: Callable[[int, Counter[str]], str]) -> Callable[[int, Counter[str]], None]:
        said_s = monotonic_s()

        def show(ended: int, counts: Counter[str]) -> None:
            nonlocal said_s
            if ended == total or monotonic_s() - said_s > SAY_S:
                said_s = monotonic_s()
                self.say(f"{ended} of {total} jobs, {words(ended, counts)}")

        return show


def commands(infos: list[JobInfo]) -> dict[str, str]:
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


def print_summary(summary: Summary) -> None:
    console = Console()
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

"""Runs the demo: keeps its workers alive, makes its jobs, waits for their ends and adds them up."""

from __future__ import annotations

import asyncio
import signal
import socket
import sysconfig
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import anyio

from asyncq import embedded
from asyncq.cli.demo_show import LOG, PLACE, Screen, Spread, Summary, commands
from asyncq.cli.worker import worker_command
from asyncq.clock import monotonic_s, now_ms
from asyncq.config import WorkerSettings
from asyncq.demo import FAULT_EVERY, Injected, measure, queue
from asyncq.embedded import keeper
from asyncq.handle import Job
from asyncq.job import JobInfo

__all__ = ["DemoFailed", "run", "standard_library"]

LOOK_S = 0.1
STUCK_S = 60.0
DEATHS = 10
"""A worker that dies more often than the demo makes it is broken, and so is the demo."""
SKIPPED = {"site-packages", "dist-packages", "__pycache__", "node_modules"}


class DemoFailed(Exception):
    """The demo cannot go on; the message is for the user."""


def run(place: Path, limit: int, screen: Screen) -> Summary:
    """Measure the files of a folder.

    Raises:
        DemoFailed: there are none, another demo runs here, or workers do not work.
        KeyboardInterrupt, CancelledError: Ctrl-C or SIGTERM; the workers are gone.
    """
    paths = _python_files(place, limit)
    with _only_one(), open(LOG, "wb") as log:
        screen.say(f"{len(paths)} files of {place}; server and data in {PLACE.resolve()}")
        return asyncio.run(_demo(place, paths, screen, log))


def standard_library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


async def _demo(place: Path, paths: list[Path], screen: Screen, log: BinaryIO) -> Summary:
    if (task := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with queue:
        await _forget_last_demo()
        async with _workers(["files", "files", "risky"], log) as killed:
            summary = await _measure_all(place, paths, screen, killed)
        # The killed ones could not sign off.
        for worker in await queue.monitors[0].workers():
            await queue.stores[0].retire(worker.consumer)
        return summary


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
    """Remove every key of the demo's own queue, so that the counters begin at 0."""
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


async def _measure_all(place: Path, paths: list[Path], screen: Screen, killed: Counter[str]) -> Summary:
    begun_s, begun_ms = monotonic_s(), now_ms()
    jobs = await queue.enqueue_many(
        (measure.options(lane="risky") if wrong == "poison" else measure).call(str(path), wrong)
        for path, wrong in zip(paths, _injections(len(paths)), strict=True)
    )
    enqueue_s = monotonic_s() - begun_s
    counts = await _watch(len(jobs), begun_ms, screen, killed)
    infos = await _look_at_all(jobs)
    return _summary(str(place), infos, counts, sum(killed.values()), enqueue_s)


def _injections(count: int) -> list[Injected]:
    """What is to go wrong with each job: faults all along, one accident half-way, one poison job."""
    wrong: list[Injected] = ["fault" if i % FAULT_EVERY == 0 else "" for i in range(count)]
    if count > 2:
        wrong[count // 2] = "accident"
    wrong[-1] = "poison"
    return wrong


async def _watch(total: int, begun_ms: int, screen: Screen, killed: Counter[str]) -> Counter[str]:
    """Show how far it is until every job has ended; returns the queue's own counters."""
    moved_s, ended = monotonic_s(), 0
    with screen.progress(total) as show:
        while True:
            counts = await _counters(begun_ms)
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


async def _look_at_all(jobs: Sequence[Job[Any]]) -> list[JobInfo]:
    infos: list[JobInfo] = []
    for first in range(0, len(jobs), 50):
        infos += await asyncio.gather(*(job.info() for job in jobs[first : first + 50]))
    return infos


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
        commands=commands(infos),
    )


def _spread(values: Sequence[float]) -> Spread:
    """Median and 99th percentile, by the nearest rank."""
    if not values:
        return Spread(0.0, 0.0)
    ordered = sorted(values)
    p50, p99 = (ordered[max(0, -(-len(ordered) * percent // 100) - 1)] for percent in (50, 99))
    return Spread(round(p50, 1), round(p99, 1))

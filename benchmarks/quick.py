"""`make bench-quick`: drain, enqueue and pickup latency beside the bare limit, in under a minute.

Each figure is the median of interleaved rounds on one private server; the ratio is the median of the ratios
within a round, so it holds even where the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from asyncq import codec
from asyncq.worker.tuning import calm_collector
from benchmarks import bare, ours
from benchmarks.server import private_server
from benchmarks.worker import queue_of

JOB = codec.frame(codec.Body("add", msgspec.Raw(codec.encode([1, 1])), 1_795_000_000_000))
MOMENT = 1_795_000_000_000
RECORD = codec.encode(
    codec.Record("succeeded", "add", msgspec.Raw(codec.encode(2)), "", 1, MOMENT, MOMENT, MOMENT, "a-worker")
)

Measure = Callable[[str, int], Awaitable[float]]
"""Takes a server's URL and the round; jobs a second, or seconds."""


async def drain_bare(url: str, turn: int, jobs: int, ttl_ms: int) -> float:
    store = bare.open_store(url, f"bare-drain-{turn}-{ttl_ms}")
    await bare.enqueue(store, jobs, JOB)
    rate = await bare.drain(store, jobs, RECORD if ttl_ms else b"", ttl_ms)
    await _clear(store.link)
    return rate


async def drain_ours(url: str, turn: int, jobs: int, concurrency: int, task: str) -> float:
    async with queue_of(url, f"drain-{turn}") as queue:
        await ours.enqueue_many(queue, jobs, task)
        rate = await ours.drain(queue, jobs, concurrency)
        await _clear(queue.link)
    return rate


async def enqueue_bare(url: str, turn: int, jobs: int) -> float:
    store = bare.open_store(url, f"bare-enqueue-{turn}")
    rate = await bare.enqueue(store, jobs, JOB)
    await _clear(store.link)
    return rate


async def enqueue_ours(url: str, turn: int, jobs: int, coroutines: int) -> float:
    async with queue_of(url, f"enqueue-{turn}") as queue:
        rate = await (ours.enqueue_from(queue, coroutines, jobs) if coroutines else ours.enqueue_many(queue, jobs))
        await _clear(queue.link)
    return rate


async def pickup(url: str, kind: str, samples: int) -> list[float]:
    """Seconds from the enqueue to the job's first line, in another process that is idle in between."""
    name = f"pickup-{kind}-{time.monotonic_ns()}"
    worker = subprocess.Popen([sys.executable, "-m", "benchmarks.worker", kind, url, name])
    seen = []
    try:
        async with queue_of(url, name) as queue:
            ping = queue.find_task("ping")
            for i in range(samples + 20):
                job = await ping.enqueue(time.monotonic_ns())
                key = queue.store(job.id).keys.result(job.id)
                await asyncio.sleep(0.004)  # Looking sooner would take the time from what is measured.
                while not (raw := await queue.link.command("GET", key)):
                    await asyncio.sleep(0.001)
                took = codec.decode_any(raw)
                if i >= 20:  # the process has started, and both sides are warm
                    seen.append(
                        (took if isinstance(took, int) else codec.decode_any(codec.decode_record(raw).value)) / 1e9
                    )
    finally:
        worker.terminate()
        worker.wait()
    return seen


async def _clear(link: Any) -> None:
    """Each figure begins with an empty server, and the server is this benchmark's own."""
    await link.command("FLUSHALL", "SYNC")


def rows(jobs: int) -> list[tuple[str, Measure, Measure]]:
    """What is measured: name, the bare limit, ours."""
    return [
        (
            "drain, results, timeouts, concurrency 1000",
            lambda url, turn: drain_bare(url, turn, jobs, bare.RESULT_TTL_MS),
            lambda url, turn: drain_ours(url, turn, jobs, 1000, "add"),
        ),
        (
            "drain, results, timeouts, concurrency 100",
            lambda url, turn: drain_bare(url, turn, jobs, bare.RESULT_TTL_MS),
            lambda url, turn: drain_ours(url, turn, jobs, 100, "add"),
        ),
        (
            "drain, fire and forget, concurrency 1000",
            lambda url, turn: drain_bare(url, turn, jobs, 0),
            lambda url, turn: drain_ours(url, turn, jobs, 1000, "forget"),
        ),
        (
            "enqueue_many",
            lambda url, turn: enqueue_bare(url, turn, jobs),
            lambda url, turn: enqueue_ours(url, turn, jobs, 0),
        ),
        (
            "enqueue from 100 coroutines",
            lambda url, turn: enqueue_bare(url, turn, jobs),
            lambda url, turn: enqueue_ours(url, turn, jobs, 100),
        ),
    ]


async def measure(url: str, jobs: int, rounds: int, samples: int, progress: Progress) -> dict[str, Any]:
    found: dict[str, Any] = {}
    table = rows(jobs)
    steps = progress.add_task("measuring", total=rounds * len(table) * 2 + 4)
    # One round is thrown away: it loads the scripts and warms the interpreter.
    for turn in range(-1, rounds):
        for name, limit, own in table:
            if turn < 0 and name != table[0][0]:
                continue
            pair = (await limit(url, turn), await own(url, turn))
            if turn >= 0:
                found.setdefault(name, []).append(pair)
                progress.advance(steps, 2)
            gc.collect()
    figures: dict[str, Any] = {
        name: {
            "bare": statistics.median(limit for limit, _ in pairs),
            "asyncq": statistics.median(own for _, own in pairs),
            "ratio": statistics.median(own / limit for limit, own in pairs),
            "asyncq_min": min(own for _, own in pairs),
            "asyncq_max": max(own for _, own in pairs),
            "unit": "jobs/s",
        }
        for name, pairs in found.items()
    }
    waits: dict[str, list[float]] = {"bare": [], "asyncq": []}
    for kind in ("bare", "asyncq", "asyncq", "bare"):
        waits[kind] += await pickup(url, kind, samples)
        progress.advance(steps)
    for label, rank in (("p50", 50), ("p99", 99)):
        mine, bound = (statistics.quantiles(waits[kind], n=100)[rank - 1] for kind in ("asyncq", "bare"))
        figures[f"idle pickup {label}"] = {"bare": bound, "asyncq": mine, "ratio": mine / bound, "unit": "s"}
    return figures


def show(figures: dict[str, Any], server: str, rounds: int, console: Console) -> None:
    table = Table(title=f"asyncq beside the bare scripts: {server}, medians of {rounds} rounds")
    for heading in ("", "asyncq", "min - max", "bare limit", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, row in figures.items():
        if row["unit"] == "s":
            table.add_row(
                name, f"{row['asyncq'] * 1e3:.2f} ms", "", f"{row['bare'] * 1e3:.2f} ms", f"{row['ratio']:.2f}"
            )
        else:
            span = f"{row['asyncq_min']:,.0f} - {row['asyncq_max']:,.0f}"
            table.add_row(name, f"{row['asyncq']:,.0f}/s", span, f"{row['bare']:,.0f}/s", f"{row['ratio']:.2f}")
    console.print(table)
    console.print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores. Ratios are of pairs measured one after the other."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quick", description=__doc__)
    parser.add_argument("--server", default="any", choices=("any", "redis", "valkey"), help="which server to start")
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs in each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=300, help="pickups in each of two runs")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    console = Console(stderr=options.json)
    with private_server(options.server) as (url, server), Progress(console=console, transient=True) as progress:
        calm_collector()
        figures = uvloop.run(measure(url, options.jobs, options.rounds, options.samples, progress))
    if options.json:
        print(json.dumps({"server": server, "rounds": options.rounds, "jobs": options.jobs, "figures": figures}))
    else:
        show(figures, server, options.rounds, console)


if __name__ == "__main__":
    main()

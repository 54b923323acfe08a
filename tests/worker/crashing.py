"""A worker process for tests to kill: `python -m tests.worker.crashing <url> <queue> <visibility timeout> [lanes]`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from asyncq import Queue, Worker
from asyncq.worker.supervisor import on_signals
from tests.eventually import eventually

LANES = ("default", "other")
queue = Queue("x")
if __name__ == "__main__":
    queue = Queue(sys.argv[2], url=sys.argv[1], lanes=LANES, visibility_timeout=float(sys.argv[3]))


def note(folder: str, what: str) -> None:
    """One line in a file that all runs of a test share."""
    with open(Path(folder) / "runs", "a") as file:
        file.write(what + "\n")


@queue.task()
async def hold(folder: str, until: str) -> str:
    """Run until a file is there."""
    note(folder, f"begun {os.getpid()}")
    await eventually((Path(folder) / until).exists, 60)
    note(folder, f"ended {os.getpid()}")
    return "held"


@queue.task()
async def die(folder: str) -> None:
    """Take the whole process down, unless it is that of the tests."""
    assert __name__ == "__main__", "a poisonous job came out of its worker process"
    note(folder, f"begun {os.getpid()}")
    os._exit(17)


def own(queue: Queue, *names: str) -> None:
    """Register tasks of this module with the test's queue, as the worker process has them."""
    for task in names:
        queue.task()(globals()[task].function)


def runs(folder: Path) -> list[str]:
    """What the runs noted, without who it was."""
    file = folder / "runs"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


async def main() -> None:
    worker = Worker(queue, concurrency=4, grace=0.0, lanes=tuple(sys.argv[4:]))
    with on_signals({"SIGTERM": worker.stop}):
        await worker.run()


if __name__ == "__main__":
    asyncio.run(main())

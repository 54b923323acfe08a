"""Tasks for child processes, which import them from here. Tests register their functions with queues of their own.

`python -m tests.worker.children <url> <queue>` is a worker to kill.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from asyncq import Queue, Reject, Retry, RetryLater, SoftTimeout, Worker, current_job

declared = Queue("children")


@declared.task(process=True)
def double(n: int) -> int:
    return 2 * n


@declared.task(process=True)
def moment(at: datetime) -> datetime:
    assert isinstance(at, datetime)
    return at.astimezone(UTC)


@declared.task(process=True)
def pid() -> int:
    return os.getpid()


@declared.task(process=True)
def fail(text: str) -> None:
    raise ValueError(text)


@declared.task(process=True, retry=Retry(attempts=3, backoff="constant", base=0, give_up_on=(KeyError,)))
def give_up(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")
    raise KeyError("no use")


@declared.task(process=True)
def unshowable() -> None:
    raise ValueError("half a character: \ud800")


@declared.task(process=True)
def leave(code: int) -> None:
    os._exit(code)


@declared.task(process=True)
def exit_politely() -> None:
    sys.exit("enough")


@declared.task(process=True)
def talk(words: str) -> str:
    print(words)  # noqa: T201
    sys.stdout.flush()
    os.write(1, words.encode())
    os.system("echo and from a shell")
    assert sys.stdin.read() == ""
    return words


@declared.task(process=True)
def report_and_wait(go_on: str) -> tuple[str, int, tuple[str, ...]]:
    job = current_job()
    job.progress(40, step="half way")
    while not Path(go_on).exists():
        time.sleep(0.01)
    return job.id, job.attempt, job.tags


@declared.task(process=True)
def sleep_for_ever(pid_file: str) -> None:
    Path(pid_file + ".part").write_text(str(os.getpid()))
    os.rename(pid_file + ".part", pid_file)
    while True:
        time.sleep(0.05)


@declared.task(process=True)
def clean_up_in_time() -> str:
    try:
        while True:
            time.sleep(0.01)
    except SoftTimeout:
        return f"cleaned up, {current_job().timed_out}"


@declared.task(process=True)
def not_in_time() -> str:
    while True:
        time.sleep(0.01)


@declared.task(process=True)
def later() -> str:
    if current_job().attempt == 1:
        raise RetryLater(0, "once more")
    return f"attempt {current_job().attempt}"


@declared.task(process=True)
def reject() -> None:
    raise Reject("not for me")


@declared.task(process=True)
def unencodable(path: str) -> object:
    with open(path, "a") as file:
        file.write("x")
    return object()


@declared.task(process=True)
def swallow(blob: bytes) -> int:
    return len(blob)


async def main() -> None:
    queue = Queue(sys.argv[2], url=sys.argv[1])
    queue.task(process=True)(sleep_for_ever.function)
    await Worker(queue, concurrency=1).run()


if __name__ == "__main__":
    asyncio.run(main())

"""An application in a directory of its own, the command line in this process, and workers as processes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio.to_thread
import pytest
from typer.testing import CliRunner

from asyncq import Queue
from asyncq.cli import app as commands
from asyncq.workerinfo import WorkerInfo
from tests.eventually import eventually
from tests.servers import TestServer

ROOT = Path(__file__).parents[2]

CODE = """
import asyncio, os, threading
from asyncq import Queue, current_job

queue = Queue({name!r}, url={url!r}, lanes=("high", "default"), partitions={partitions})
number = 7


class Nested:
    queue = queue


@queue.task()
async def add(a: int, b: int = 2) -> int:
    return a + b

@queue.task()
async def greet(who: str) -> str:
    return "hello " + who

@queue.task(retry=1)
async def boom(text: str) -> None:
    raise ValueError(text)

@queue.task()
async def gate(path: str) -> int:
    while not os.path.exists(path):
        await asyncio.sleep(0.01)
    return current_job().attempt

@queue.task()
def think(path: str) -> None:
    open(path + ".thinking", "w").close()
    while not os.path.exists(path):
        threading.Event().wait(0.01)

@queue.task()
async def die() -> None:
    os._exit(9)

@queue.task()
async def loop() -> str:
    return type(asyncio.get_running_loop()).__module__
"""


@dataclass
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@dataclass
class App:
    """The application under test: module `module`, in `place`, the working directory.

    `code` is a second copy of it: commands that run in this process import their own, in a loop of their own.
    """

    module: str
    place: Path
    code: ModuleType

    @property
    def path(self) -> str:
        return f"{self.module}:queue"

    @property
    def queue(self) -> Queue:
        found: Queue = self.code.queue
        return found

    @property
    def tasks(self) -> Any:
        return self.code


Cli = Callable[..., Awaitable[Said]]


def write_app(place: Path, module: str, name: str, url: str | None, partitions: int = 1) -> Path:
    file = place / f"{module}.py"
    file.write_text(CODE.format(name=name, url=url, partitions=partitions))
    return file


@pytest.fixture(params=[1])
def partitions(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
async def app(
    name: str, server: TestServer, partitions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[App]:
    """An application, its queue open."""
    for variable in [*os.environ]:
        if variable.startswith(("ASYNCQ_", "REDIS_")):
            monkeypatch.delenv(variable)
    module = f"app_{name}"
    write_app(tmp_path, module, name, server.url, partitions)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = importlib.util.spec_from_file_location(f"copy_of_{module}", tmp_path / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.modules[code.__name__] = code
    spec.loader.exec_module(code)
    found = App(module, tmp_path, code)
    async with found.queue:
        yield found
    for copy in (module, code.__name__):
        sys.modules.pop(copy, None)


@pytest.fixture
def cli(server: TestServer, name: str) -> Cli:
    """Runs a command: `await cli("jobs", "--state=dead")`. The queue is named for commands that look at one."""

    async def call(*words: str, answer: str = "", queue: bool = True) -> Said:
        where = [f"--queue={name}", f"--url={server.url}"] if queue else []
        run = CliRunner().invoke
        result = await anyio.to_thread.run_sync(lambda: run(commands, [*words, *where], input=answer))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.stdout, result.stderr)

    return call


class Process:
    """A command as a process of its own, its stderr in a file."""

    def __init__(self, words: list[str], place: Path, env: dict[str, str]) -> None:
        self._file = place / "stderr"
        with open(self._file, "ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "asyncq", *words],
                cwd=place,
                env={**os.environ, "PYTHONPATH": str(ROOT), **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._file.read_text(errors="replace")

    def send(self, name: str) -> None:
        self.popen.send_signal(getattr(signal, name))

    async def ended(self, timeout: float = 20.0) -> int:
        await eventually(lambda: self.popen.poll() is not None, timeout)
        return int(self.popen.returncode)

    async def logs(self, text: str, count: int = 1, timeout: float = 20.0) -> None:
        try:
            await eventually(lambda: self.log.count(text) >= count, timeout)
        except AssertionError:
            raise AssertionError(f"{text!r} was not logged:\n{self.log}") from None


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path, name: str) -> Iterator[Start]:
    """Starts commands: `start("worker", app.path)`. Afterwards nothing of them may be left."""
    processes: list[Process] = []

    def begin(*words: str, **env: str) -> Process:
        processes.append(Process(list(words), tmp_path, env))
        return processes[-1]

    yield begin
    for process in processes:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.wait()
    left = running(name)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left or all(process.popen.returncode == -9 for process in processes), f"still running: {left}"


def running(word: str) -> dict[int, str]:
    """pid and command line of all `asyncq worker` processes that have the word in it."""
    lines = subprocess.run(["ps", "-wweo", "pid=,stat=,args="], capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(None, 2) for line in lines]
    return {
        int(row[0]): row[2]
        for row in rows
        if len(row) == 3 and word in row[2] and "asyncq worker" in row[2] and not row[1].startswith("Z")
    }


async def workers(queue: Queue, count: int = 1) -> list[WorkerInfo]:
    """The workers in the registry, once there are so many."""

    async def look() -> list[WorkerInfo]:
        found = await queue.monitors[0].workers()
        return found if len(found) == count else []

    return await eventually(look, 20)


async def state(queue: Queue, job_id: str, *wanted: str, timeout: float = 20.0) -> str:
    """The state of a job, once it is one of these."""

    async def look() -> str:
        info = await queue.monitor(job_id).look(job_id)
        return info.state if info and info.state in wanted else ""

    return await eventually(look, timeout)

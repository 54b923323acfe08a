"""`asyncq demo`, on a small folder: what it breaks is mended, counted and explained, and nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncq.embedded import stop
from asyncq.errors import EmbeddedUnavailable
from tests.eventually import eventually

ROOT = Path(__file__).parent.parent
FILES = 30


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory to run the demo in, with files to measure; its path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="aqd", dir="/tmp") as directory:
        base = Path(directory).resolve()
        source = base / "source"
        source.mkdir()
        for number in range(FILES - 1):
            (source / f"m{number:02}.py").write_text(f"class C{number}:\n    def method(self): ...\n")
        (source / "broken.py").write_text("def broken(:\n")
        yield base
        with contextlib.suppress(EmbeddedUnavailable):
            stop(base / ".asyncq")


def environment() -> dict[str, str]:
    """No server is configured, and none that is would be used."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("ASYNCQ_", "REDIS_"))}
    return {**keep, "PYTHONPATH": str(ROOT), "ASYNCQ_URL": "redis://127.0.0.1:1/0"}


def asyncq(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asyncq", *arguments],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


def processes(place: Path) -> list[str]:
    """The command lines of all workers that run there."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if (process / "cwd").resolve() == place:
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


def test_the_demo_shows_retries_dead_letters_and_crashes(place: Path) -> None:
    done = asyncq(place, "demo", "source", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["jobs"] == FILES
    assert found["dead_letters"] == {"rejected": 1, "poison": 1}
    assert found["done"] == FILES - 2
    assert found["retried"] > 0
    assert found["workers_killed"] == 4, "one accident, and three times the poison job"
    assert found["crashed"] >= 4
    assert found["classes"] == FILES - 2
    if sys.platform == "linux":
        assert not any(" worker " in line for line in processes(place))

    said = {}
    for what, command in found["commands"].items():
        words = command.split()
        done = asyncq(place, *words[words.index("asyncq") + 1 :])
        assert done.returncode == 0, done.stderr
        said[what] = done.stdout
    assert "poison" in said["the dead letters"]
    assert "broken.py" in said["the dead letters"]
    assert "poison" in said["the poison job"]
    assert "2 dead" in said["the whole queue"]


def test_without_a_terminal_it_prints_lines(place: Path) -> None:
    done = asyncq(place, "demo", "source")
    assert done.returncode == 0, done.stderr
    assert f"{FILES} of {FILES} jobs" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert "dead-lettered" in done.stdout


def test_a_folder_without_files_is_refused(place: Path) -> None:
    (place / "empty").mkdir()
    done = asyncq(place, "demo", "empty")
    assert done.returncode == 1
    assert "no Python file in empty" in done.stderr


def start(place: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "asyncq", "demo", "source"],
        cwd=place,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_ended_early_it_leaves_no_worker(place: Path, how: signal.Signals) -> None:
    demo = start(place)
    try:
        await eventually(lambda: sum(" worker " in line for line in processes(place)) >= 3, timeout=20)
        demo.send_signal(how)
        await eventually(lambda: demo.poll() is not None, timeout=20)
    finally:
        demo.kill()
        demo.wait()
    await eventually(lambda: not any(" worker " in line for line in processes(place)), timeout=20)
    assert demo.returncode == (130 if how != signal.SIGKILL else -signal.SIGKILL)

"""The supervisor, with children that are a few lines of Python."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncq.worker import supervisor
from asyncq.worker.supervisor import USED_UP, Child, Supervisor
from tests.eventually import eventually

BEGIN = """
import os, pathlib, signal, socket, sys, time
tether = socket.socket(fileno=int(sys.argv[-1]))
number, place = int(sys.argv[1]), pathlib.Path(sys.argv[2])
with open(place / "starts", "a") as file:
    file.write(f"{number}\\n")
starts = (place / "starts").read_text().split().count(str(number))
def stop(*_):
    (place / f"stopped{number}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
"""
STARTED = "tether.send(b'+')\n"
WAIT = "tether.recv(1)\n"


class Children:
    """Supervised children that run `code`; notes what became of them in `place`."""

    def __init__(self, place: Path, code: str, count: int) -> None:
        self.place, self._code = place, BEGIN + code
        self.supervisor = Supervisor(self._command, count, grace_s=0.0)

    def _command(self, number: int) -> Sequence[str]:
        return [sys.executable, "-c", self._code, str(number), str(self.place)]

    @property
    def starts(self) -> list[int]:
        file = self.place / "starts"
        return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SHORTEST_PAUSE_S", 0.01)


async def test_first_child_goes_ahead(tmp_path: Path) -> None:
    slow = "if number == 1:\n    while not (place / 'go').exists(): time.sleep(0.01)\n"
    children = Children(tmp_path, slow + STARTED + WAIT, 3)
    running = asyncio.create_task(children.supervisor.run())
    await eventually(lambda: children.starts == [1])
    (tmp_path / "go").touch()
    await eventually(lambda: sorted(children.starts) == [1, 2, 3])
    children.supervisor.stop()
    assert await running == 0


async def test_crashed_child_is_started_again(tmp_path: Path) -> None:
    children = Children(tmp_path, STARTED + "if starts < 3: os.kill(os.getpid(), signal.SIGKILL)\n" + WAIT, 1)
    running = asyncio.create_task(children.supervisor.run())
    await eventually(lambda: children.starts == [1, 1, 1])
    children.supervisor.stop()
    assert await running == 0
    assert (tmp_path / "stopped1").exists()


async def test_pauses_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def pause(self: Supervisor, seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(Supervisor, "_pause", pause)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE_S", 0.04)
    children = Children(tmp_path, STARTED + "sys.exit(3 if starts < 5 else 0)", 1)
    assert await children.supervisor.run() == 0
    assert pauses == [0.01, 0.02, 0.04, 0.04]


async def test_used_up_child_is_replaced_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    children = Children(tmp_path, STARTED + f"sys.exit({USED_UP} if starts < 3 else 0)", 1)
    with caplog.at_level("INFO"):
        assert await children.supervisor.run() == 0
    assert children.starts == [1, 1, 1]
    assert "again in" not in caplog.text


@pytest.mark.parametrize(("code", "tries"), [(2, 1), (1, supervisor.TRIES)])
async def test_gives_up_what_cannot_start(
    tmp_path: Path, code: int, tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    children = Children(tmp_path, f"sys.exit({code})", 3)
    assert await children.supervisor.run() == code
    assert children.starts == [1] * tries
    assert f"workers cannot start: the last one exited with code {code}" in caplog.text


async def test_never_gives_up_once_one_has_worked(tmp_path: Path) -> None:
    """A server that is away for a while must not end the workers that wait for it."""
    children = Children(tmp_path, "if 2 <= starts < 7: sys.exit(2)\n" + STARTED + "sys.exit(3 if starts < 8 else 0)", 1)
    assert await children.supervisor.run() == 0
    assert len(children.starts) == 8


async def test_stop_while_waiting_to_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SHORTEST_PAUSE_S", 600.0)
    children = Children(tmp_path, STARTED + "sys.exit(3)", 1)
    running = asyncio.create_task(children.supervisor.run())
    await eventually(lambda: children.starts == [1])
    children.supervisor.stop()
    assert await running == 0


async def test_child_that_will_not_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "PATIENCE_S", 0.1)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    children = Children(tmp_path, deaf + STARTED + "(place / 'up').touch()\nwhile True: time.sleep(60)", 1)
    running = asyncio.create_task(children.supervisor.run())
    await eventually((tmp_path / "up").exists)
    children.supervisor.stop()
    assert await running == 0
    assert "worker process 1: killed" in caplog.text


async def test_signals_wait_until_a_child_can_take_them(tmp_path: Path) -> None:
    """SIGTSTP would suspend a process that has no handler yet, and SIGUSR2 would end it."""
    code = (
        "while not (place / 'go').exists(): time.sleep(0.01)\n"
        "signal.signal(signal.SIGTSTP, lambda *_: (place / 'quiet').touch())\n" + STARTED
    )
    children = Children(tmp_path, code + "while True: time.sleep(0.01)", 1)
    running = asyncio.create_task(children.supervisor.run())
    await eventually(lambda: children.starts == [1])
    children.supervisor.quiet()
    children.supervisor.dump_stacks()
    (tmp_path / "go").touch()
    await eventually((tmp_path / "quiet").exists)
    children.supervisor.stop()
    assert await running == 0


async def test_quiet_starts_nothing_any_more(tmp_path: Path) -> None:
    code = "signal.signal(signal.SIGTSTP, lambda *_: sys.exit(3))\n" + STARTED
    children = Children(tmp_path, code + "(place / 'up').touch()\nwhile True: time.sleep(60)", 1)
    running = asyncio.create_task(children.supervisor.run())
    await eventually((tmp_path / "up").exists)
    children.supervisor.quiet()
    assert await running == 0
    assert children.starts == [1]


async def test_child_learns_of_the_end_of_its_parent(tmp_path: Path) -> None:
    """What a child inherits of the tether must not keep it open."""
    code = BEGIN + STARTED + "tether.recv(1)\n(place / 'alone').touch()"
    child = await Child.start([sys.executable, "-c", code, "1", str(tmp_path)])
    other = await Child.start([sys.executable, "-c", BEGIN + STARTED + WAIT, "2", str(tmp_path)])
    await eventually(lambda: child.started and other.started)
    child._socket.shutdown(2)
    assert await child.wait() == 0
    assert (tmp_path / "alone").exists()
    assert other.process.returncode is None
    other._socket.shutdown(2)
    assert await other.wait() == 0


async def test_children_have_a_session_of_their_own(tmp_path: Path) -> None:
    """Ctrl-C reaches a whole process group; the children must hear of it once, from the supervisor."""
    code = BEGIN + "(place / 'session').write_text(str(os.getsid(0)))\n"
    child = await Child.start([sys.executable, "-c", code, "1", str(tmp_path)])
    assert await child.wait() == 0
    assert int((tmp_path / "session").read_text()) == child.process.pid != os.getsid(0)

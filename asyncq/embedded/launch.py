"""Start, find and stop the server of a directory. What runs it in between is the keeper."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from asyncq.embedded import keeper
from asyncq.embedded.binary import find_server
from asyncq.embedded.keeper import GATE, KEEPER, LOCK, LOG, READY, STATE, TAKEN
from asyncq.errors import ConfigError, EmbeddedUnavailable

DIRECTORY = Path(".asyncq")

# Linux allows 107 bytes and macOS 103 for the path of a unix socket.
LONGEST_SOCKET_PATH = 100

LONGEST_LOG = 1_000_000  # bytes; looked at when a server starts


@dataclass(frozen=True, slots=True)
class Server:
    """A running embedded server. It belongs to its directory, not to who started it."""

    url: str
    """For redis-py's `from_url`: unix:///absolute/path?db=0"""
    socket: Path
    pid: int
    keeper: int
    """pid of the process that looks after it; SIGTERM to it stops both cleanly"""
    name: str
    version: str
    origin: str
    """Where the program came from, for people to read."""
    directory: Path
    started: bool
    """Whether this very call started it."""


def ensure(directory: Path = DIRECTORY, *, idle_s: float = 60.0, timeout_s: float = 60.0) -> Server:
    """The server of this directory: the one that runs, else one started now.

    Blocks, for a millisecond if it runs. May be called from any number of processes and threads at once; all
    get the same server, and exactly one of them `started=True`. The server outlives its starter and Ctrl-C,
    and ends by itself once nobody has been connected for `idle_s` seconds (math.inf: never; who starts it
    decides), but never sooner than that after this call. What was written is in the directory (AOF, fsynced
    every second) and there again at the next start, also after a kill of everything.

    Raises EmbeddedUnavailable, with what the server said, if there is no program to run, the directory
    cannot be used, or the server does not answer within `timeout_s`.
    """
    if not idle_s > 0:
        raise ConfigError(f"idle_s must be above 0, not {idle_s!r}")
    place, deadline = directory.resolve(), time.monotonic() + timeout_s
    with _explained(place):
        _make(place)
        with keeper.held(place / GATE, timeout_s):
            while True:
                if server := _settled(place, deadline) or _start(place, idle_s, deadline):
                    return server


def status(directory: Path = DIRECTORY) -> Server | None:
    """The server that runs in this directory, if one does and answers. Creates and changes nothing."""
    place = directory.resolve()
    try:
        state = json.loads((place / STATE).read_text())
    except (OSError, ValueError):
        return None
    path = Path(state["socket"])
    if not keeper.answers(path):
        return None
    return Server(
        url=f"unix://{quote(str(path))}?db=0",
        socket=path,
        pid=state["pid"],
        keeper=state["keeper"],
        name=state["name"],
        version=state["version"],
        origin=state["origin"],
        directory=place,
        started=False,
    )


def stop(directory: Path = DIRECTORY, timeout_s: float = 10.0) -> bool:
    """Shut the directory's server down and wait until it is gone; False if none runs.

    Clean: what was written is there at the next start. Clients that are connected are cut off. Raises
    EmbeddedUnavailable if it is still there after `timeout_s`.
    """
    place, deadline = directory.resolve(), time.monotonic() + timeout_s
    if not (place / LOCK).exists():
        return False
    with _explained(place), keeper.held(place / GATE, timeout_s):
        server = _settled(place, deadline)
        if server is None:
            return False
        refusal = _shut_down(server)
        try:
            with keeper.held(place / LOCK, deadline - time.monotonic()):
                return True
        except TimeoutError:
            raise EmbeddedUnavailable(
                f"the server in {place}, pid {server.pid}, is still there after {timeout_s:g} s. {refusal}"
            ) from None


def _shut_down(server: Server) -> str:
    """Ask it to end, and return what it said if it refused. It may still be at it: the lock tells the end."""
    try:
        with keeper.Line(server.socket) as line:
            return line.ask("SHUTDOWN").decode(errors="replace").strip()
    except OSError:
        return ""  # it hung up, or is too busy to answer


def _settled(place: Path, deadline: float) -> Server | None:
    """The server, or None if none runs, once whatever starts or ends here just now has done so."""
    while True:
        server = status(place)
        if server and not keeper.is_free(place / KEEPER):
            return server
        if server:
            _shut_down(server)  # its keeper was killed; on Linux it is ending already
        if keeper.is_free(place / LOCK):
            return None
        if time.monotonic() > deadline:
            raise EmbeddedUnavailable(f"{place} is in use by a server that does not answer{_tail(place / LOG, 0)}")
        time.sleep(0.01)


def _start(place: Path, idle_s: float, deadline: float) -> Server | None:
    """Start one. None if another was first after all: its starter did not wait for it, or was killed."""
    binary = find_server()
    command = [sys.executable, "-IS", keeper.__file__, str(place), str(_socket_path(place)), str(idle_s)]
    command += [str(binary.path), binary.name, ".".join(map(str, binary.version)), binary.origin]
    log_path = place / LOG
    with open(log_path, "ab", opener=_owner_only) as log:
        if log.tell() > LONGEST_LOG:
            log.truncate(0)
        begin = log.seek(0, os.SEEK_END)
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=place,
            start_new_session=True,
        ) as process:
            try:
                word = process.communicate(timeout=max(0.0, deadline - time.monotonic()))[0].decode()
            except subprocess.TimeoutExpired:
                word = "it is still reading its data; it goes on, try again later"
    if word == TAKEN:
        return None
    if word == READY and (server := status(place)):
        return replace(server, started=True)
    reason = word if word != READY else "it ended again"
    raise EmbeddedUnavailable(f"could not start {binary} in {place}: {reason}{_tail(log_path, begin)}")


def _make(place: Path) -> None:
    try:
        place.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if not place.is_dir():
            raise
    else:
        (place / ".gitignore").write_text("*\n")  # nobody means to commit this


def _socket_path(place: Path) -> Path:
    """In the directory, unless that path is too long: then in a short directory that depends on it alone."""
    inside = place / "server.sock"
    if len(os.fsencode(inside)) <= LONGEST_SOCKET_PATH:
        return inside
    short = f"asyncq-{os.geteuid()}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}"
    temporary = Path(tempfile.gettempdir()).resolve() / short / "s"
    return temporary if len(os.fsencode(temporary)) <= LONGEST_SOCKET_PATH else Path("/tmp") / short / "s"


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _tail(log: Path, begin: int) -> str:
    """The end of what was logged since, for an error message; nothing if there is nothing."""
    try:
        with open(log, "rb") as file:
            file.seek(max(begin, file.seek(0, os.SEEK_END) - 2000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "".join(f"\n  {line}" for line in lines[-12:])


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    try:
        yield
    except EmbeddedUnavailable:
        raise
    except OSError as error:
        raise EmbeddedUnavailable(
            f"cannot use {place} for a server: {error}. Give it another directory, or set ASYNCQ_URL."
        ) from error

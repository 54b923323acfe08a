"""The keeper: a small process that runs the server of one directory for as long as somebody uses it.

    starter --- starts and forgets ---> keeper --- runs as its child ---> server

It is run by its path and not as a module, so that it imports nothing but the standard library and is small
and quick to start. What its starter shares with it (locks, file names, the wire) stands here for that reason.

The laws of the directory:

* `lock` is held by the keeper and inherited by the server, so it is free only when both are gone. A server
  starts under it and nowhere else: two on one directory are impossible, whatever was killed.
* `keeper` is held by the keeper alone. It tells, as a pid seen from another container could not, whether a
  server that answers is looked after.
* `gate` is held, for a moment, by whoever attaches to the server, starts it or stops it. So nobody is given
  a server that is just about to stop.
* `server.json` says where the server is. It proves nothing: it counts only while that server answers.

If the keeper is killed, Linux ends its server too, cleanly. macOS cannot be asked to: there the server goes
on without one, not ending by itself, until the next ensure() replaces it or stop() stops it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOCK, KEEPER, GATE, STATE, LOG = "lock", "keeper", "gate", "server.json", "server.log"

ABOUT = ("name", "version", "origin")  # of the server: given by the starter, told by status()
# What the keeper tells its starter: the server answers; another keeper was first; or why there is no server.
READY, TAKEN = "ready", "taken"


def main(arguments: list[str]) -> None:
    """Leave the starter's process tree, then keep the server. The starter hears on stdout how it went."""
    if os.fork():
        os._exit(0)  # the starter reaps this one at once; nobody has to reap the keeper
    os.umask(0o077)
    # A starter may have had signals blocked or ignored, and both are inherited.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    wake = _wake_on(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    directory, socket_path, idle_s, binary, *about = arguments
    try:
        _keep(Path(directory), Path(socket_path), float(idle_s), binary, about, wake)
    except Exception as error:
        _tell(f"{type(error).__name__}: {error}")
        raise


def _keep(place: Path, path: Path, idle_s: float, binary: str, about: list[str], wake: int) -> None:
    """Run the server, and leave the directory as after a clean end. `about` is for status()."""
    try:
        lock, _ = take(place / LOCK, wait_s=1), take(place / KEEPER, wait_s=1)
    except TimeoutError:
        return _tell(TAKEN)
    _make_private(path.parent)
    server = _run(binary, place, path, lock)
    try:
        if _comes_up(server, path, wake):
            who = {"keeper": os.getpid(), "pid": server.pid, "socket": str(path)}
            _write(place / STATE, json.dumps(who | dict(zip(ABOUT, about, strict=True))))
            _tell(READY)
            _watch(server, place, path, lock, idle_s, wake)
        else:
            _tell(f"it ended at once, with status {server.returncode}")
    finally:
        _end(server)
        if _owns(place, lock):
            _tidy(place, path)
    # The locks are not given back by hand: they end with the process, after everything above.


def take(lock: Path, wait_s: float) -> int:
    """Take a lock file and return its descriptor; TimeoutError if somebody holds it all that time."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise TimeoutError(f"{lock} is held by another process") from None
            time.sleep(0.01)
        else:
            return descriptor


def is_free(lock: Path) -> bool:
    """Whether nobody holds the lock file. It is made if there is none."""
    try:
        with held(lock, wait_s=0):
            return True
    except TimeoutError:
        return False


@contextlib.contextmanager
def held(lock: Path, wait_s: float) -> Iterator[None]:
    """Hold a lock file meanwhile; TimeoutError if it could not be had in time."""
    descriptor = take(lock, wait_s)
    try:
        yield
    finally:
        # By hand, for closing would not do if another thread forked meanwhile: the child has a copy.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


class Line:
    """A connection to a server's unix socket, for the few commands needed here."""

    def __init__(self, path: Path, timeout_s: float = 2.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        self._replies = self._socket.makefile("rb")
        try:
            self._socket.connect(str(path))
        except OSError:
            self.close()
            raise

    def ask(self, command: str) -> bytes:
        """The reply, an error as `-CODE text`; empty if the server closed instead. OSError if it is late."""
        self._socket.sendall(command.encode() + b"\r\n")
        reply = self._replies.readline()
        return self._replies.read(int(reply[1:]) + 2) if reply.startswith(b"$") else reply

    def close(self) -> None:
        self._replies.close()
        self._socket.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answers(path: Path) -> bool:
    """Whether a server there takes commands. Any reply will do, even a busy one's error, but for LOADING."""
    try:
        with Line(path) as line:
            reply = line.ask("PING")
    except OSError:
        return False
    return bool(reply) and not reply.startswith(b"-LOADING")


def _run(binary: str, place: Path, path: Path, lock: int) -> subprocess.Popen[bytes]:
    settings = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(place),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
    }
    return subprocess.Popen(
        [binary, *(word for key, value in settings.items() for word in (f"--{key}", value))],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,  # the log
        stderr=sys.stderr,
        pass_fds=[lock],
        preexec_fn=_die_with_me(),
    )


def _die_with_me() -> Callable[[], None] | None:
    """What makes Linux send the child SIGTERM when this thread, the keeper's only one, is gone."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes
    except ImportError:  # a Python built without it
        return None
    prctl, keeper = ctypes.CDLL(None).prctl, os.getpid()

    def ask_kernel() -> None:
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != keeper:
            os._exit(1)  # it was killed before it could be asked for

    return ask_kernel


def _wake_on(*signals: signal.Signals) -> int:
    """A descriptor that becomes readable, giving the signals' numbers, when one of them arrives."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in signals:
        signal.signal(number, lambda *_: None)
    return reader


def _told_to_stop(wake: int, wait_s: float) -> bool:
    """Wait that long, or until a signal arrives; say whether it was one that asks to stop."""
    if not select.select([wake], [], [], wait_s)[0]:
        return False
    return any(number != signal.SIGCHLD for number in os.read(wake, 100))


def _comes_up(server: subprocess.Popen[bytes], path: Path, wake: int) -> bool:
    """Wait until the server has read its data, however long; False if it ended or we were told to stop."""
    while server.poll() is None:
        if answers(path):
            return True
        if _told_to_stop(wake, 0.01):
            _end(server)
    return False


def _watch(server: subprocess.Popen[bytes], place: Path, path: Path, lock: int, idle_s: float, wake: int) -> None:
    """Return when the server has ended, lost its directory, was unused for `idle_s`, or a signal says so."""
    used, visits = time.monotonic(), 0
    while not _told_to_stop(wake, min(1.0, idle_s / 4)):
        if server.poll() is not None:
            return _say(f"the server ended with status {server.returncode}")
        if not _owns(place, lock):
            # Its files are deleted, so there is nothing to save, and a clean end would take away the socket
            # of the server that may run there by now.
            server.kill()
            return _say("the directory was removed: stopping")
        before, visits = visits, _visits(path)
        if visits != before + 1:
            used = time.monotonic()
        elif time.monotonic() - used >= idle_s:
            with contextlib.suppress(TimeoutError), held(place / GATE, wait_s=0):
                if _visits(path) == visits + 1:
                    _end(server)
                    return _say(f"nobody was connected for {idle_s:g} s: stopped")
    return _say("told to stop")


def _visits(path: Path) -> int:
    """How many connections there ever were, with the one made to ask; 0 if somebody else is connected now.

    The number betrays those that came and went between two looks. A server too busy to say is in use.
    """
    try:
        with Line(path) as line:
            info = line.ask("INFO clients stats")
    except OSError:
        return 0
    alone = re.search(rb"^connected_clients:1\r$", info, re.MULTILINE)
    ever = re.search(rb"^total_connections_received:(\d+)\r$", info, re.MULTILINE)
    return int(ever[1]) if alone and ever else 0


def _end(server: subprocess.Popen[bytes]) -> None:
    """The clean way: on SIGTERM it writes out its AOF. However long that takes; a kill might lose data."""
    server.terminate()
    server.wait()


def _owns(place: Path, lock: int) -> bool:
    """Whether the directory is still the one we locked, and not deleted or another of the same name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(place / LOCK), os.fstat(lock))
    return False


def _make_private(directory: Path) -> None:
    """A directory only we can enter. One that is there already, in /tmp perhaps, may be somebody's trap."""
    directory.mkdir(mode=0o700, exist_ok=True)
    about = os.lstat(directory)
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
        raise PermissionError(f"{directory} is not a directory of this user")


def _tidy(place: Path, path: Path) -> None:
    (place / STATE).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    if path.parent != place:
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def _write(file: Path, text: str) -> None:
    """Readers see the whole of it or none."""
    unfinished = file.with_suffix(".new")
    unfinished.write_text(text)
    unfinished.replace(file)


def _tell(word: str) -> None:
    """Let the starter know, if it still listens, and hang up."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, word.encode())
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _say(text: str) -> None:
    sys.stderr.write(f"{os.getpid()}:keeper {time.strftime('%d %b %Y %H:%M:%S')} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main(sys.argv[1:])

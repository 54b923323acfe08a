"""Throw-away servers for tests: private, empty, and gone when the test process is.

They do not go through `asyncq.embedded`'s keeper, so a fault there cannot hide itself from the tests, and a
test may pause, kill and restart them as it likes.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from asyncq.embedded.binary import Binary, find_all

# Becomes the server after asking Linux to kill it together with the thread that started it. A trampoline and
# not preexec_fn: that forks the test process with all its threads, which newer Pythons warn about.
_TRAMPOLINE = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the test process died first")
os.execv(command[0], command)
"""


def available() -> dict[str, Binary]:
    """The servers to test against, by family. Valkey comes with the `dev` extra."""
    found: dict[str, Binary] = {}
    for binary in find_all():
        found.setdefault(binary.name, binary)
    return found


def start_valkey(directory: Path | None = None, *, aof: bool = False, **config: object) -> TestServer:
    """A Valkey server. Keyword arguments are server settings: `requirepass="x"`, `maxmemory=1_000_000`."""
    return TestServer(available()["valkey"], directory, aof, config)


def start_redis(directory: Path | None = None, *, aof: bool = False, **config: object) -> TestServer:
    """A Redis server; KeyError if none of 7.0 or newer is on PATH."""
    return TestServer(available()["redis"], directory, aof, config)


class TestServer:
    """One running server with its own directory, reached through a unix socket and through TCP.

    It must be started in the main thread: Linux kills it when the thread that started it ends.
    """

    __test__ = False  # pytest: not a class of tests

    def __init__(self, binary: Binary, directory: Path | None, aof: bool, config: dict[str, object]) -> None:
        self.name, self.version, self.config = binary.name, binary.version, config
        # A socket's path may have some 100 bytes, fewer than pytest's tmp_path likes to use.
        self._scratch = Path(tempfile.mkdtemp(prefix="aq", dir="/tmp"))
        self.directory = directory or self._scratch
        self.socket = self._scratch / "s"
        self._binary, self._aof = binary.path, aof
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        try:
            self._start_on_some_port()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return f"unix://{self._login}{self.socket}?db=0"

    @property
    def tcp_url(self) -> str:
        return f"redis://{self._login}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return (self._scratch / "log").read_text(errors="replace")

    def pause(self) -> None:
        """Stop answering without closing anything, like a server that swaps or a network that drops."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for the end. `restart()` may follow."""
        self._signal(signal.SIGKILL)
        self._reap()

    def restart(self) -> None:
        """Start again in the same directory, socket and port; with `aof` what was written is there again."""
        if self.alive:
            self._shut_down()
        if not self._start(self.port):
            raise RuntimeError(f"{self.name} did not start again:\n{self.log}")

    def stop(self) -> None:
        """End it and remove its scratch directory. May be called twice."""
        if self.alive:
            self._shut_down()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> TestServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _login(self) -> str:
        password = self.config.get("requirepass")
        return f":{password}@" if password else ""

    def _start_on_some_port(self) -> None:
        # No port is reserved beforehand, for then another process could take it in between: the server binds
        # it, and one that is taken ends the server. Below 32768 no outgoing connection takes one either.
        for port in random.sample(range(10_000, 32_000), 20):
            if self._start(port):
                self.port = port
                return
        raise RuntimeError(f"{self.name} did not start:\n{self.log}")

    def _start(self, port: int) -> bool:
        """Start, and wait until it answers; False if it ended instead."""
        settings = {
            "port": port,
            "bind": "127.0.0.1",
            "unixsocket": self.socket,
            "unixsocketperm": 700,
            "dir": self.directory,
            "save": "",
            "appendonly": "yes" if self._aof else "no",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            **{key.replace("_", "-"): value for key, value in self.config.items()},
        }
        arguments = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        self.socket.unlink(missing_ok=True)
        with open(self._scratch / "log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-ISc", _TRAMPOLINE, str(os.getpid()), str(self._binary), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while self._process.poll() is None:
            if self._answers():
                return True
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.name} does not answer:\n{self.log}")
            time.sleep(0.005)
        return False

    def _answers(self) -> bool:
        """Whether it is ready: while it still reads its AOF it says LOADING."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(100).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False

    def _shut_down(self) -> None:
        assert self._process is not None
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _reap(self) -> None:
        assert self._process is not None
        self._process.wait(10)

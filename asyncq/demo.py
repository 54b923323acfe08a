"""The queue and the task of `asyncq demo`: measure Python files, one job a file, and break on request.

The work is real. What goes wrong is partly real too (a file that does not parse is rejected) and partly
injected, by an argument that says so.
"""

from __future__ import annotations

import ast
import hashlib
import os
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec

from asyncq import Queue, Reject, Retry, current_job

__all__ = ["FAULT_EVERY", "Injected", "InjectedFault", "Measured", "measure", "queue"]

Injected = Literal["", "fault", "accident", "poison"]
"""What is to go wrong with a job.

fault:     its first attempt raises
accident:  its first attempt kills the worker process, and with it every job that runs beside it
poison:    every attempt kills the worker process
"""


FAULT_EVERY = 40


class InjectedFault(Exception):
    """Raised because the demo asked for it."""


class Measured(msgspec.Struct, frozen=True):
    """What a file holds. `run_ms` is how long it took to find out."""

    path: str
    sha256: str
    bytes: int
    lines: int
    functions: int
    classes: int
    run_ms: float


@asynccontextmanager
async def _quiet(_: Queue) -> AsyncIterator[None]:
    """Old code has odd escapes, and the parser warns about each."""
    warnings.simplefilter("ignore", SyntaxWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    yield


queue = Queue(
    "asyncq-demo",
    # Neither a server nor a queue that somebody uses for real work: each demo forgets the one before.
    url="embedded://",
    lanes=("files", "risky"),
    visibility_timeout=1.5,
    max_crashes=3,
    lifespan=_quiet,
)


@queue.task(retry=Retry(attempts=3, delays=(0.5, 1.0)), timeout=30)
def measure(path: str, injected: Injected = "") -> Measured:
    """Parse a Python file, count what is in it, and hash it."""
    begun_s = time.perf_counter()
    job = current_job()
    if injected == "poison" or (injected == "accident" and job.crashes == 0):
        os._exit(1)
    if injected == "fault" and job.attempt == 1:
        raise InjectedFault(f"the demo injects a fault into the first attempt of every {FAULT_EVERY}th job")
    source = Path(path).read_bytes()
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise Reject(f"{path} does not parse: {error}") from error
    return Measured(
        path=path,
        sha256=hashlib.sha256(source).hexdigest(),
        bytes=len(source),
        lines=source.count(b"\n"),
        functions=sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes),
        classes=sum(isinstance(node, ast.ClassDef) for node in nodes),
        run_ms=(time.perf_counter() - begun_s) * 1000,
    )

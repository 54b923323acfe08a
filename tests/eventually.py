"""Waiting in tests for what becomes true soon, instead of sleeping for as long as it may take."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

import anyio

T = TypeVar("T")


@overload
async def eventually(look: Callable[[], Awaitable[T | None]], timeout: float = ...) -> T: ...
@overload
async def eventually(look: Callable[[], T | None], timeout: float = ...) -> T: ...
async def eventually(look: Callable[[], object], timeout: float = 5.0) -> object:
    """Call `look` again and again until it gives something truthy, and return that.

    Raises AssertionError with the last value seen once `timeout` seconds have passed. What `look` raises goes
    straight to the caller.
    """
    deadline = time.monotonic() + timeout
    while True:
        seen = look()
        value: object = await seen if inspect.isawaitable(seen) else seen
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s; last seen: {value!r}")
        await anyio.sleep(0.01)

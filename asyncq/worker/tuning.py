"""What a process that only works jobs may do to itself. A service that embeds a worker decides for itself."""

from __future__ import annotations

import gc

__all__ = ["calm_collector"]

ALLOCATIONS = 50_000
"""Objects made between two looks of the collector. The engine's own objects are freed without it."""


def calm_collector() -> None:
    """Have the garbage collector leave what was imported alone, and look less often at what comes after."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS, 20, 100)

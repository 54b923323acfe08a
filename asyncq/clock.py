"""The clocks. Wall time goes into Redis and to people; monotonic time measures waits and timeouts."""

from __future__ import annotations

import time

__all__ = ["monotonic_s", "now_ms"]

monotonic_s = time.monotonic


def now_ms() -> int:
    """Milliseconds since the Unix epoch, by this machine's clock."""
    return time.time_ns() // 1_000_000

"""The clocks. Wall time goes into Redis and to people; monotonic time measures waits and timeouts."""

from __future__ import annotations

import time

__all__ = ["LONGEST_S", "monotonic_s", "now_ms"]

LONGEST_S = 100 * 365 * 86_400.0
"""The longest time a setting may name. Redis refuses a TTL that overflows, and infinity crosses as no number."""

monotonic_s = time.monotonic


def now_ms() -> int:
    """Milliseconds since the Unix epoch, by this machine's clock."""
    return time.time_ns() // 1_000_000

"""What a part of the worker does while the server cannot be used: say so once, and try again."""

from __future__ import annotations

import logging
import random

from asyncq.clock import monotonic_s

__all__ = ["Outage"]

log = logging.getLogger("asyncq.worker")


class Outage:
    """Says once, loudly, that the server cannot be used, and once that it can again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._since: float | None = None
        self._failures = 0

    @property
    def pause_s(self) -> float:
        """How long to wait before the next try: doubling from 50 ms to 2 s, with jitter."""
        return min(2.0, 0.05 * 2.0 ** min(self._failures, 8)) * (0.5 + random.random() / 2)

    def begin(self, error: BaseException) -> None:
        self._failures += 1
        if self._since is None:
            self._since = monotonic_s()
            log.error("%s: %s. Trying again until it works", self._what, error)

    def end(self) -> None:
        if self._since is not None:
            log.warning("%s: works again after %.1f s", self._what, monotonic_s() - self._since)
        self._since, self._failures = None, 0

"""How many jobs may run at once, and how many more may be started in all."""

from __future__ import annotations

import asyncio

__all__ = ["Slots"]


class Slots:
    """`wait_free` is for one waiter: the dispatch loop.

    limit:   jobs at once
    budget:  jobs in all, or None
    """

    __slots__ = ("_taken", "_waiter", "budget", "limit")

    def __init__(self, limit: int, budget: int | None = None) -> None:
        self.limit, self.budget = limit, budget
        self._taken = 0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def taken(self) -> int:
        return self._taken

    @property
    def free(self) -> int:
        free = self.limit - self._taken
        return free if self.budget is None else min(free, self.budget)

    def take(self) -> None:
        self._taken += 1
        if self.budget is not None:
            self.budget -= 1

    def give_back(self) -> None:
        self._taken -= 1
        if self._waiter is not None:
            self.wake()

    async def wait_free(self) -> int:
        """How many are free, once any is; 0 when woken for another reason. Safe to cancel."""
        if self.free <= 0:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return max(0, self.free)

    def wake(self) -> None:
        """End the wait, free or not."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

"""The hot loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from asyncq.worker.delivery import Delivery
from asyncq.worker.slots import Slots

__all__ = ["dispatch"]


class Sources(Protocol):
    async def claim(self, free: int) -> Sequence[Delivery]: ...
    async def wait_and_claim(self, free: int) -> Sequence[Delivery]: ...

    @property
    def exhausted(self) -> bool:
        """The last claim brought less than was asked for: nothing more waits."""


async def dispatch(sources: Sources, slots: Slots, start: Callable[[Delivery], None], stopping: asyncio.Event) -> None:
    """Keep every slot filled until told to stop.

    Claims only what can be started at once, so strict priority holds. Both waits end when `stopping` is set.
    """
    while not stopping.is_set():
        free = await slots.wait_free()
        claim = sources.wait_and_claim if sources.exhausted else sources.claim
        for delivery in await claim(free):
            start(delivery)

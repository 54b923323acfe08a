"""All verbs at once, in random order, by workers that crash, stall and come back: every job ends exactly once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from asyncq.clock import now_ms
from asyncq.store import Store
from tests.jobs import (
    ALL,
    DEFAULT,
    Delivery,
    amiss,
    bury,
    cancel,
    claim,
    index,
    letters,
    outlive_lease,
    push,
    push_special,
    reclaim,
    retry,
    stats,
    succeed,
)


class Chaos:
    """Jobs, and workers that hold deliveries, also those that are no longer theirs."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store, self.random = store, random.Random(seed)
        self.made = 0
        self.pushes: list[tuple[str, int, list[str], int]] = []
        self.held: dict[str, list[Delivery]] = {f"w{n}": [] for n in range(3)}

    async def step(self) -> None:
        acts: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self.push, 4),
            (self.push_again, 1),
            (self.schedule, 2),
            (self.claim, 5),
            (self.finish, 5),
            (self.renew, 1),
            (self.stall, 2),
            (self.release, 1),
            (self.cancel, 2),
            (self.promote, 2),
            (self.revive, 1),
            (self.say, 1),
        ]
        act = self.random.choices([act for act, _ in acts], [weight for _, weight in acts])[0]
        await act()

    def ids(self) -> list[str]:
        count = self.random.randint(1, 5)
        self.made += count
        return [f"job{n}" for n in range(self.made - count, self.made)]

    def some(self, worker: str) -> list[Delivery]:
        held = self.held[worker]
        return self.random.sample(held, self.random.randint(0, len(held)))

    def worker(self) -> str:
        return self.random.choice(list(self.held))

    async def push(self) -> None:
        one = (f"p{len(self.pushes)}", 1, self.ids(), self.random.choice(ALL))
        self.pushes.append(one)
        await self._push(one)

    async def push_again(self) -> None:
        if self.pushes:
            await self._push(self.random.choice(self.pushes))

    async def _push(self, one: tuple[str, int, list[str], int]) -> None:
        producer, sequence, ids, lane = one
        await push(self.store, *ids, lane=lane, producer=producer, sequence=sequence)

    async def schedule(self) -> None:
        await push_special(self.store, *self.ids(), lane=self.random.choice(ALL), delay_ms=1)

    async def claim(self) -> None:
        worker = self.worker()
        self.held[worker] += await claim(self.store, self.random.randint(1, 6), worker)

    async def finish(self) -> None:
        jobs = self.some(self.worker())
        jobs += self.random.sample(jobs, len(jobs) // 3)  # some of them twice
        match self.random.choice("ssrb"):
            case "s":
                await succeed(self.store, *jobs)
            case "r":
                await retry(self.store, *jobs)
            case _:
                await bury(self.store, *jobs)

    async def renew(self) -> None:
        worker = self.worker()
        for lane in ALL:
            entries = [job.entry for job in self.held[worker] if job.lane == lane]
            await self.store.renew(lane, worker, entries)

    async def stall(self) -> None:
        """Some leases run out, and are taken back; the worker does not notice."""
        await outlive_lease(self.store, *self.some(self.worker()))
        for lane in ALL:
            await reclaim(self.store, lane, max_crashes=3)

    async def release(self) -> None:
        for job in self.some(self.worker()):
            await self.store.release(job.lane, [job.entry])

    async def cancel(self) -> None:
        job_id = f"job{self.random.randint(0, self.made)}"
        await cancel(self.store, job_id)

    async def promote(self) -> None:
        await self.store.promote(DEFAULT, self.random.randint(1, 5))

    async def revive(self) -> None:
        found = [(entry, letter["id"].decode(), letter["job"], DEFAULT) for entry, letter in await letters(self.store)]
        await self.store.revive(found[:2] * 2, now_ms())

    async def say(self) -> None:
        ids = [job.id for job in self.some(self.worker())]
        if ids:
            await self.store.watch(ids)
            await self.store.report([(job_id.encode(), b"half") for job_id in ids])

    async def drain(self) -> None:
        """Everything that is still alive is run to its end by one healthy worker."""
        while True:
            for held in self.held.values():
                await outlive_lease(self.store, *held)
                held.clear()
            for lane in ALL:
                await reclaim(self.store, lane, max_crashes=1000)
            await self.store.promote(DEFAULT)
            jobs = await claim(self.store, 500, "healthy")
            assert await succeed(self.store, *jobs) == []
            if all(place.startswith("dead ") for place in (await index(self.store)).values()):
                return


@pytest.mark.parametrize("seed", range(6))
async def test_every_job_ends_exactly_once(store: Store, seed: int) -> None:
    chaos = Chaos(store, seed)
    for _ in range(300):
        await chaos.step()
    assert await amiss(store) == []
    await chaos.drain()
    dead = [letter["id"].decode() for _, letter in await letters(store)]
    ids = [f"job{n}" for n in range(chaos.made)]
    ended = [job_id for job_id in ids if await store.link.command("EXISTS", store.keys.result(job_id))]
    assert sorted(ended + dead) == sorted(ids)
    counted = Counter(await stats(store))
    assert counted["succeeded"] + counted["cancelled"] == len(ended)
    assert counted["dead"] - counted["revived"] == len(dead)
    assert counted["enqueued"] == chaos.made

"""purge: dead letters are forgotten for good, unless they live again."""

from __future__ import annotations

import pytest

from asyncq.clock import now_ms
from asyncq.errors import ServerRefused
from asyncq.store import BATCH, Store
from tests.jobs import DEFAULT, bury, claim, index, letters, push, push_special, snapshot


async def kill(store: Store, *ids: str) -> list[tuple[bytes, str]]:
    await push(store, *ids)
    await bury(store, *await claim(store, BATCH))
    return [(entry, letter["id"].decode()) for entry, letter in await letters(store)]


async def test_only_what_is_named_is_forgotten(store: Store) -> None:
    a, b = await kill(store, "a", "b")
    assert await store.purge([a]) == 1
    assert [letter["id"] for _, letter in await letters(store)] == [b"b"]
    assert await index(store) == {"b": f"dead {b[0].decode()}"}
    assert await push_special(store, "a", chosen=True) == {}


async def test_twice_counts_once(store: Store) -> None:
    (a,) = await kill(store, "a")
    assert await store.purge([a, a]) == 1
    assert await store.purge([a]) == 0


async def test_a_job_that_lives_again_is_left_alone(store: Store) -> None:
    (a,) = await kill(store, "a")
    await store.revive([(*a, b"job", DEFAULT)], now_ms())
    before = await snapshot(store)
    assert await store.purge([a]) == 0
    assert await snapshot(store) == before


async def test_a_letter_without_an_id_is_forgotten_too(store: Store) -> None:
    await store.link.command("XADD", store.lane_keys[DEFAULT], "*", "hello", "world")
    (foreign,) = await kill(store)
    assert foreign[1] == ""
    assert await store.purge([foreign]) == 1
    assert await letters(store) == []


async def test_a_batch_of_the_largest_size(store: Store) -> None:
    assert await store.purge(await kill(store, *(f"j{n}" for n in range(BATCH)))) == BATCH
    assert await index(store) == {}


async def test_nothing_to_purge_is_nothing(store: Store) -> None:
    assert await store.purge([]) == 0


async def test_an_index_of_another_type_is_refused_before_anything_is_written(store: Store) -> None:
    (a,) = await kill(store, "a")
    kept = await store.link.command("DUMP", store.keys.index)
    await store.link.command("DEL", store.keys.index)
    await store.link.command("SET", store.keys.index, "x")
    with pytest.raises(ServerRefused, match="choose another queue name"):
        await store.purge([a])
    assert len(await letters(store)) == 1
    await store.link.command("DEL", store.keys.index)
    await store.link.command("RESTORE", store.keys.index, 0, kept)

"""Takes the guards out of the scripts, one at a time, and sees the promise break.

What this shows is that the tests of the promises can fail: each scenario here ends well with the script as it
is, and badly with the guard removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from asyncq import scripts
from asyncq.clock import now_ms
from asyncq.errors import ServerRefused
from asyncq.keys import GROUP
from asyncq.store import Endings, Store
from tests.jobs import (
    DEFAULT,
    amiss,
    bury,
    cancel,
    claim,
    index,
    letters,
    open_store,
    outlive_lease,
    push,
    push_special,
    reclaim,
    retry,
    snapshot,
    stats,
    succeed,
)
from tests.servers import TestServer

Break = Callable[[str, str, str], None]
Scenario = Callable[[Store], Awaitable[bool]]


@pytest.fixture
async def store(server: TestServer, name: str) -> AsyncIterator[Store]:
    async with open_store(server.url, name) as store:
        yield store
        # What is left of a broken promise would rightly be found amiss by the check of the keys.
        await store.link.command("DEL", store.keys.waiters, store.keys.progress, store.keys.cancelled)


def without(monkeypatch: pytest.MonkeyPatch, name: str, guard: str, instead: str) -> None:
    """Have the store run this script with `guard` replaced."""
    whole = scripts.load(name)
    assert whole.source.count(guard) == 1, f"{name}.lua has changed; the guard to remove is not there once"
    broken = scripts.parse(name, whole.source.replace(guard, instead))
    load = scripts.load
    monkeypatch.setattr(scripts, "load", lambda asked: broken if asked == name else load(asked))


# -- scenarios: each says whether the promise was kept --------------------------------------------------------


async def a_repeated_push_is_there_once(store: Store) -> bool:
    for _ in range(2):
        await push(store, "a", producer="p", sequence=1)
    return len(await claim(store)) == 1


async def a_push_that_failed_can_be_repeated(store: Store) -> bool:
    await store.link.command("SET", store.lane_keys[DEFAULT], "in the way")
    with pytest.raises(ServerRefused):
        await push(store, "a", producer="p", sequence=1)
    await store.link.command("DEL", store.lane_keys[DEFAULT])
    await push(store, "a", producer="p", sequence=1)
    return len(await claim(store)) == 1


async def a_push_is_whole_or_not_at_all(store: Store) -> bool:
    await store.link.command("SET", store.keys.index, "in the way")
    before = await snapshot(store)
    with pytest.raises(ServerRefused):
        await push(store, "a")
    return await snapshot(store) == before


async def a_uniqueness_key_admits_one(store: Store) -> bool:
    await push_special(store, "a", "b", unique="k")
    return len(await claim(store)) == 1


async def a_uniqueness_key_is_free_after_a_cancel(store: Store) -> bool:
    await push_special(store, "a", unique="k")
    await cancel(store, "a")
    return await push_special(store, "b", unique="k") == {}


async def one_job_has_one_ending(store: Store) -> bool:
    await push(store, "a")
    (zombie,) = await claim(store)
    await outlive_lease(store, zombie)
    await reclaim(store)
    (job,) = await claim(store, consumer="w2")
    for one in (zombie, job, zombie):
        await succeed(store, one, record=one.entry)
    recorded = await store.link.command("GET", store.keys.result("a"))
    return recorded == job.entry and (await stats(store))["succeeded"] == 1 and await amiss(store) == []


async def a_lost_job_can_still_be_found(store: Store) -> bool:
    await push(store, "a")
    await outlive_lease(store, *await claim(store))
    await reclaim(store)
    return await amiss(store) == []


async def a_retry_is_added_once(store: Store) -> bool:
    await push(store, "a")
    (job,) = await claim(store)
    for _ in range(2):
        await retry(store, job)
        await store.promote(DEFAULT)
    return len(await claim(store)) == 1


async def a_job_is_buried_once(store: Store) -> bool:
    await push(store, "a")
    (job,) = await claim(store)
    for _ in range(2):
        await bury(store, job)
    return len(await letters(store)) == 1


async def a_delivery_given_twice_ends_once_and_is_not_lost(store: Store) -> bool:
    await push(store, "a")
    (job,) = await claim(store)
    return await succeed(store, job, job) == [job.entry] and await amiss(store) == []


async def an_ending_is_whole_or_not_at_all(store: Store) -> bool:
    await push(store, "a")
    (job,) = await claim(store)
    with contextlib.suppress(ServerRefused):
        await succeed(store, job)
    recorded = await store.link.command("EXISTS", store.keys.result("a"))
    return recorded != (await index(store) == {"a": f"default {job.entry.decode()}"}) and await amiss(store) == []


async def what_has_ended_does_not_run_again(store: Store) -> bool:
    await push(store, "a")
    await succeed(store, *await claim(store))
    # FLUSHALL, a failover, a hand: the group is gone and is made again at 0.
    await store.link.command("XGROUP", "DESTROY", store.lane_keys[DEFAULT], GROUP)
    return await claim(store) == []


async def a_zombie_cannot_take_a_job_back(store: Store) -> bool:
    await push(store, "a")
    (zombie,) = await claim(store)
    await outlive_lease(store, zombie)
    await reclaim(store)
    await claim(store, consumer="w2")
    return await store.renew(DEFAULT, "w1", [zombie.entry]) == []


async def a_zombie_cannot_end_a_job_that_runs_elsewhere(store: Store) -> bool:
    await push(store, "a")
    (zombie,) = await claim(store)
    await outlive_lease(store, zombie)
    await reclaim(store)
    await claim(store, consumer="w2")
    return await succeed(store, zombie) == [zombie.entry]


async def a_job_that_kills_its_workers_is_buried(store: Store) -> bool:
    await push(store, "a")
    for _ in range(3):
        (job,) = await claim(store)
        await store.begin_trial(job.lane, "w1", job.entry, b"a")
        await outlive_lease(store, job)
        await reclaim(store, max_crashes=3)
    return len(await letters(store)) == 1


async def who_lost_a_job_does_not_put_it_on_trial(store: Store) -> bool:
    await push(store, "a")
    (job,) = await claim(store)
    await succeed(store, job)
    noted = await store.begin_trial(job.lane, "w1", job.entry, b"a")
    await store.link.command("DEL", store.keys.trials)
    return not noted


async def who_waits_beside_a_poisonous_job_is_not_buried(store: Store) -> bool:
    await push(store, "a")
    for _ in range(3):
        await outlive_lease(store, *await claim(store))
        await reclaim(store, max_crashes=3)
    return len(await letters(store)) == 0


async def a_crash_is_no_attempt(store: Store) -> bool:
    await push(store, "a", job=b"attempt 1")
    await outlive_lease(store, *await claim(store))
    await reclaim(store)
    (job,) = await claim(store)
    return (job.job, job.crashes) == (b"attempt 1", 1)


async def a_release_is_no_crash(store: Store) -> bool:
    await push(store, "a")
    (job,) = await claim(store)
    await store.release(DEFAULT, [job.entry])
    return [job.crashes for job in await claim(store)] == [0]


async def a_job_released_twice_is_there_once(store: Store) -> bool:
    await push(store, "a")
    (job,) = await claim(store)
    await outlive_lease(store, job)
    await reclaim(store)
    await store.release(DEFAULT, [job.entry])
    return len(await claim(store)) == 1 and await amiss(store) == []


async def an_ending_that_cannot_be_recorded_ends_nothing(store: Store) -> bool:
    await push(store, "a")
    (job,) = await claim(store)
    await store.link.command("SET", store.keys.dead, "in the way")
    before = await snapshot(store)
    with pytest.raises(ServerRefused):
        await bury(store, job)
    kept = await snapshot(store) == before
    await store.link.command("DEL", store.keys.dead)
    return kept


async def an_ending_whose_uniqueness_key_is_odd_ends_nothing(store: Store) -> bool:
    await push(store, "a")
    (job,) = await claim(store)
    endings = Endings(len(store.lanes))
    endings.end(job.lane, job.entry, b"a", "succeeded", b"v", store.keys.result("a"), 60_000)
    endings.free(store.keys.unique("k"), b"a")
    await store.link.command("LPUSH", store.keys.unique("k"), "in the way")
    before = await snapshot(store)
    with pytest.raises(ServerRefused):
        await store.finish(endings, now_ms())
    kept = await snapshot(store) == before
    await store.link.command("DEL", store.keys.unique("k"))
    return kept


async def the_first_worker_finds_what_came_before_it(store: Store) -> bool:
    await push(store, "a")
    return len(await claim(store)) == 1


async def a_due_job_moves_once(store: Store) -> bool:
    await push_special(store, "a", delay_ms=60_000)
    await store.link.command("ZADD", store.keys.scheduled, 1, "a")
    for _ in range(2):
        await store.promote(DEFAULT)
    return len(await claim(store)) == 1


async def a_dead_letter_lives_again_once(store: Store) -> bool:
    await push(store, "a")
    await bury(store, *await claim(store))
    ((entry, _),) = await letters(store)
    for _ in range(2):
        await store.revive([(entry, "a", b"job", DEFAULT)], now_ms())
    return len(await claim(store)) == 1


async def a_running_job_is_not_cancelled_behind_its_workers_back(store: Store) -> bool:
    await push(store, "a")
    (job,) = await claim(store)
    answer = await cancel(store, "a")
    recorded = await store.link.command("EXISTS", store.keys.result("a"))
    return answer == "running" and not recorded and await succeed(store, job) == []


async def a_running_job_survives_emptying(store: Store) -> bool:
    await push(store, "a")
    (job,) = await claim(store)
    removed = await store.empty(DEFAULT)
    return removed == 0 and list(await index(store)) == ["a"] and await succeed(store, job) == []


async def a_worker_is_not_forgotten_with_what_it_holds(store: Store) -> bool:
    await push(store, "a")
    (job,) = await claim(store)
    await store.retire("w1")
    await outlive_lease(store, job)
    return await reclaim(store) == (1, 0)


async def nothing_is_claimed_while_paused(store: Store) -> bool:
    await push(store, "a")
    await store.pause()
    kept = await claim(store) == []
    await store.resume()
    return kept


async def who_waits_for_an_ended_job_is_not_remembered(store: Store) -> bool:
    await push(store, "a")
    await succeed(store, *await claim(store))
    return await store.watch(["a"]) == [False] and await amiss(store) == []


async def progress_of_an_ended_job_is_not_kept(store: Store) -> bool:
    await push(store, "a")
    await succeed(store, *await claim(store))
    await store.report([(b"a", b"1")])
    return await amiss(store) == []


async def nothing_points_to_a_job_that_has_ended(store: Store) -> bool:
    await push(store, "a")
    await succeed(store, *await claim(store))
    return await index(store) == {}


GUARDS: list[tuple[Scenario, str, str, str]] = [
    # enqueue
    (a_repeated_push_is_there_once, "enqueue", "if done then", "if false then"),
    (
        a_repeated_push_is_there_once,
        "enqueue",
        "tonumber(last) >= tonumber(sequence)",
        "tonumber(last) > tonumber(sequence)",
    ),
    (
        a_push_that_failed_can_be_repeated,
        "enqueue",
        "-- Everything that can fail is asked first",
        "redis.call('SET', producer, sequence, 'EX', remember_s)\n--",
    ),
    (a_push_is_whole_or_not_at_all, "enqueue", "redis.call('HLEN', index)\n", ""),
    (a_uniqueness_key_admits_one, "enqueue", "        holders[lane.unique] = id\n", ""),
    (a_uniqueness_key_is_free_after_a_cancel, "enqueue", "place and string.sub(place, 1, 5) ~= 'dead ' and id", "id"),
    # finish
    (one_job_has_one_ending, "finish", "if not left then return true end", "if true then return true end"),
    (a_retry_is_added_once, "finish", "if not left then return true end", "if true then return true end"),
    (a_job_is_buried_once, "finish", "if not left then return true end", "if true then return true end"),
    (a_delivery_given_twice_ends_once_and_is_not_lost, "finish", "    left[ARGV[i + 1]] = nil\n", ""),
    (
        an_ending_is_whole_or_not_at_all,
        "finish",
        "local lost, elsewhere = {}, {}\n",
        "local lost, elsewhere = {}, {}\nerror('in the middle')\n",
    ),
    (what_has_ended_does_not_run_again, "finish", "    redis.call('XDEL', lane, unpack(entries))\n", ""),
    (
        nothing_points_to_a_job_that_has_ended,
        "finish",
        "if #gone > 0 then redis.call('HDEL', index, unpack(gone)) end",
        "",
    ),
    (an_ending_that_cannot_be_recorded_ends_nothing, "finish", "if n_dead > 0 then redis.call('XLEN', dead) end", ""),
    (
        an_ending_whose_uniqueness_key_is_odd_ends_nothing,
        "finish",
        "for i = uniques, #ARGV, 2 do holders[i] = redis.call('GET', KEYS[tonumber(ARGV[i])]) end\n",
        "setmetatable(holders, {__index = function(_, i) return redis.call('GET', KEYS[tonumber(ARGV[i])]) end})\n",
    ),
    # reclaim
    (a_zombie_cannot_end_a_job_that_runs_elsewhere, "reclaim", "    redis.call('XDEL', lane, old)\n", ""),
    (a_job_that_kills_its_workers_is_buried, "reclaim", "tonumber(fields[6]) or 0) + 1", "tonumber(fields[6]) or 0)"),
    (who_waits_beside_a_poisonous_job_is_not_buried, "reclaim", "redis.call('SREM', trials, id) == 1", "true"),
    (
        a_crash_is_no_attempt,
        "reclaim",
        "'id', id, 'job', job, 'crashes', crashes)\n",
        "'id', id, 'job', job .. '!', 'crashes', 0)\n",
    ),
    (a_lost_job_can_still_be_found, "reclaim", "if #where > 0 then redis.call('HSET', index, unpack(where)) end\n", ""),
    # release
    (
        a_job_released_twice_is_there_once,
        "release",
        "redis.call('XACK', lane, 'workers', ARGV[i]) == 1 and entry then\n",
        "true then\n    entry = entry or redis.call('XRANGE', lane, '-', '+')[1]\n",
    ),
    (
        a_release_is_no_crash,
        "release",
        "unpack(fields, 1, 6))",
        "'id', fields[2], 'job', fields[4], 'crashes', fields[6] + 1)",
    ),
    # claim
    (
        the_first_worker_finds_what_came_before_it,
        "claim",
        "'CREATE', lane, 'workers', '0'",
        "'CREATE', lane, 'workers', '$'",
    ),
    (nothing_is_claimed_while_paused, "claim", "if stopped['*'] or stopped[consumer] then return reply end", ""),
    # the others
    (
        a_due_job_moves_once,
        "promote",
        "  redis.call('ZREM', scheduled, unpack(due))\n  redis.call('HDEL', parked, unpack(due))\n",
        "",
    ),
    (
        a_dead_letter_lives_again_once,
        "revive",
        "if redis.call('XDEL', dead, letter) == 1 then",
        "if redis.call('XDEL', dead, letter) then",
    ),
    (
        a_running_job_is_not_cancelled_behind_its_workers_back,
        "cancel",
        "if not held.err and #held > 0 then",
        "if false then",
    ),
    (who_lost_a_job_does_not_put_it_on_trial, "begin_trial", "or #held == 0", ""),
    (a_running_job_survives_emptying, "empty", "after = '(' .. about['last-delivered-id']", "after = '-'"),
    (a_worker_is_not_forgotten_with_what_it_holds, "retire", "elseif #pending > 0 then", "elseif false then"),
    (who_waits_for_an_ended_job_is_not_remembered, "watch", "if live then redis.call", "if true then redis.call"),
    (
        progress_of_an_ended_job_is_not_kept,
        "report",
        "if place and string.sub(place, 1, 5) ~= 'dead ' then",
        "if true then",
    ),
]


@pytest.mark.parametrize("scenario", dict.fromkeys(row[0] for row in GUARDS), ids=lambda scenario: scenario.__name__)
async def test_the_promise_is_kept(scenario: Scenario, store: Store) -> None:
    assert await scenario(store)


@pytest.mark.parametrize(
    ("scenario", "name_of_script", "guard", "instead"),
    GUARDS,
    ids=[f"{name}-{n}-{scenario.__name__}" for n, (scenario, name, _, _) in enumerate(GUARDS)],
)
async def test_without_its_guard_the_promise_breaks(
    scenario: Scenario,
    name_of_script: str,
    guard: str,
    instead: str,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, name_of_script, guard, instead)
    try:
        kept = await scenario(store)
    except (ServerRefused, AssertionError, ValueError, pytest.fail.Exception):
        kept = False
    assert not kept
    await store.resume()


@pytest.mark.parametrize("scenario", [a_zombie_cannot_take_a_job_back, a_zombie_cannot_end_a_job_that_runs_elsewhere])
async def test_a_lease_that_kept_its_entry_id_would_let_a_zombie_in(
    scenario: Scenario, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other design: reclaim hands the same entry to whoever asks. Then the one that lost it may end it too."""
    whole = scripts.load("reclaim").source
    start, end = whole.index("local back, buried"), whole.index("if #where > 0")
    same_entry = (
        whole[:start]
        + ("local back, buried, where = #found[2], 0, {}\nlocal _ = {lane, dead, poison, channel, name, cancelled}\n")
        + whole[end:]
    )
    broken = scripts.parse("reclaim", same_entry)
    load = scripts.load
    monkeypatch.setattr(scripts, "load", lambda name: broken if name == "reclaim" else load(name))
    assert not await scenario(store)

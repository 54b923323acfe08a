"""The producer: pushes are coalesced, each job arrives exactly once, and every caller gets an answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asyncq import Job, Queue, scripts
from asyncq.errors import PayloadTooLarge, ServerRefused, ServerUnavailable
from asyncq.producer import NewJob, Producer, Special
from asyncq.store import BATCH, Push, Store
from tests.conftest import Launch, connect
from tests.eventually import eventually
from tests.jobs import DEFAULT, amiss, claim, index, keys_of, letters, open_store, rung, snapshot, stats
from tests.proxy import Proxy
from tests.servers import TestServer
from tests.worker.recording import NOTHING, raw, size


@pytest.fixture
async def store(server: TestServer, name: str) -> AsyncIterator[Store]:
    """Straight to the server, to see what arrived."""
    async with open_store(server.url, name) as store:
        yield store
        assert await amiss(store) == []


@pytest.fixture
async def proxy(server: TestServer) -> AsyncIterator[Proxy]:
    async with Proxy(server) as proxy:
        yield proxy


@pytest.fixture
async def remote(proxy: Proxy, name: str) -> AsyncIterator[Store]:
    """The same queue through the proxy."""
    async with open_store(proxy.url, name) as remote:
        await prepare(remote)
        yield remote


async def prepare(store: Store) -> None:
    """Have the connection made and the script known, so that the next exchange is the push itself."""
    await store.link.command("SCRIPT", "LOAD", scripts.load("enqueue").source)


def job(job_id: str, special: Special | None = None) -> NewJob:
    return NewJob(DEFAULT, job_id, b"job", special)


async def arrived(store: Store) -> list[str]:
    return [one.id for one in await claim(store, BATCH)]


# -- coalescing -----------------------------------------------------------------------------------------------


async def test_calls_that_come_together_leave_together_and_in_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushes: list[int] = []
    enqueue = store.enqueue

    async def counted(producer: str, sequence: int, push: Push, *rest: Any) -> dict[int, str]:
        pushes.append(push.count)
        return await enqueue(producer, sequence, push, *rest)

    monkeypatch.setattr(store, "enqueue", counted)
    producer = Producer(store, 5)
    ids = [f"j{n:04}" for n in range(2 * BATCH + 7)]
    await asyncio.gather(*[producer.send(job(job_id)) for job_id in ids])
    assert pushes == [BATCH, BATCH, 7]
    assert [job_id for _ in range(3) for job_id in await arrived(store)] == ids


async def test_calls_that_come_during_a_push_leave_in_the_next(store: Store, remote: Store, proxy: Proxy) -> None:
    producer = Producer(remote, 5)
    proxy.hold_replies.clear()
    first = producer.send(job("first"))
    await eventually(lambda: index(store))
    rest = [producer.send(job(f"rest{n}")) for n in range(3)]
    proxy.hold_replies.set()
    assert await asyncio.gather(first, *rest) == [None] * 4
    assert producer._sequence == 2
    assert await arrived(store) == ["first", "rest0", "rest1", "rest2"]


async def test_each_caller_learns_of_its_own_job(store: Store) -> None:
    producer = Producer(store, 5)
    only = Special(0, "", store.keys.unique("k"), 60_000)
    answers = await asyncio.gather(
        producer.send(job("a", only)), producer.send(job("b")), producer.send(job("c", only))
    )
    assert list(answers) == [None, None, "a"]
    assert await producer.send_all([job("d"), job("e", only)]) == {1: "a"}


# -- exactly once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replies", [1, 3])
async def test_a_push_whose_reply_is_lost_is_there_once(
    store: Store, remote: Store, proxy: Proxy, replies: int, caplog: pytest.LogCaptureFixture
) -> None:
    producer = Producer(remote, 10)
    proxy.lose_replies = replies
    with caplog.at_level(logging.WARNING, "asyncq"):
        assert await producer.send(job("a")) is None
    assert proxy.lost == replies
    assert caplog.text.count("unanswered, repeating") == replies
    await producer.send(job("b"))
    assert await arrived(store) == ["a", "b"]
    assert await stats(store) == {"enqueued": 2}


async def test_a_whole_batch_whose_reply_is_lost_is_there_once_and_answered_as_the_first_time(
    store: Store, remote: Store, proxy: Proxy
) -> None:
    producer = Producer(remote, 10)
    only = Special(0, "", store.keys.unique("k"), 60_000)
    batch = [job(f"j{n:03}", only if n in (5, 499) else None) for n in range(BATCH)]
    proxy.lose_replies = 1
    assert await producer.send_all(batch) == {499: "j005"}
    assert await arrived(store) == [f"j{n:03}" for n in range(499)]


async def test_a_connection_that_is_cut_is_made_anew(store: Store, remote: Store, proxy: Proxy) -> None:
    producer = Producer(remote, 10)
    await producer.send(job("a"))
    proxy.cut()
    await producer.send(job("b"))
    assert await arrived(store) == ["a", "b"]


async def test_a_push_that_arrives_after_its_caller_gave_up_does_not_disturb_the_next(
    store: Store, remote: Store, proxy: Proxy
) -> None:
    producer = Producer(remote, 0.1)
    proxy.hold_replies.clear()
    with pytest.raises(ServerUnavailable, match="may have arrived or not"):
        await producer.send(job("a"))
    proxy.cut()
    proxy.hold_replies.set()
    await producer.send(job("b"))
    assert await arrived(store) == ["a", "b"]


async def test_a_server_that_says_nothing_is_given_up_in_time(store: Store, remote: Store, proxy: Proxy) -> None:
    producer = Producer(remote, 0.3)
    proxy.deaf = True
    began = asyncio.get_running_loop().time()
    with pytest.raises(ServerUnavailable, match=r"no answer within 0.3 s for a push of 1 job"):
        await producer.send(job("a"))
    assert asyncio.get_running_loop().time() - began < 2
    proxy.deaf = False
    await producer.send(job("b"))
    assert await arrived(store) == ["b"]


async def test_a_server_that_comes_back_in_time_gets_the_push(store: Store, remote: Store, proxy: Proxy) -> None:
    producer = Producer(remote, 10)
    proxy.refusing = True
    proxy.cut()
    seen = proxy.connections
    sending = producer.send(job("a"))
    await eventually(lambda: proxy.connections > seen)
    assert not sending.done()
    proxy.refusing = False
    assert await sending is None
    assert await arrived(store) == ["a"]


async def test_a_server_that_forgot_its_scripts_is_taught_again(store: Store) -> None:
    producer = Producer(store, 5)
    await producer.send(job("a"))
    await store.link.command("SCRIPT", "FLUSH")
    await producer.send(job("b"))
    assert await arrived(store) == ["a", "b"]


# -- callers that leave ---------------------------------------------------------------------------------------


async def test_a_caller_that_is_cancelled_does_not_take_its_job_back(store: Store, remote: Store, proxy: Proxy) -> None:
    producer = Producer(remote, 5)

    async def call(job_id: str) -> str | None:
        return await producer.send(job(job_id))

    proxy.hold_replies.clear()
    leaves, stays = asyncio.create_task(call("leaves")), asyncio.create_task(call("stays"))
    many = asyncio.create_task(producer.send_all([job("m1"), job("m2")]))
    await eventually(lambda: index(store))
    leaves.cancel()
    many.cancel()
    await asyncio.gather(leaves, many, return_exceptions=True)
    assert leaves.cancelled()
    assert many.cancelled()
    proxy.hold_replies.set()
    assert await stays is None
    await producer.aclose()
    assert sorted(await index(store)) == ["leaves", "m1", "m2", "stays"]


async def test_closing_waits_for_what_was_given(store: Store, remote: Store, proxy: Proxy) -> None:
    producer = Producer(remote, 5)
    proxy.lose_replies = 1
    futures = [producer.send(job(f"j{n}")) for n in range(3)]
    await producer.aclose()
    assert all(future.done() for future in futures)
    assert await arrived(store) == ["j0", "j1", "j2"]


async def test_whatever_goes_wrong_nobody_is_left_waiting(store: Store) -> None:
    """A word that cannot be sent is no error of the server's, and must not hang the others of its push."""
    producer = Producer(store, 5)
    answers = await asyncio.gather(
        producer.send(job("a")), producer.send(job("\ud800")), producer.send(job("b")), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [UnicodeEncodeError] * 3
    assert await producer.send(job("c")) is None
    assert await arrived(store) == ["c"]


# -- servers that refuse --------------------------------------------------------------------------------------


async def test_a_server_that_is_out_of_memory_takes_all_or_nothing(launch: Launch) -> None:
    server = launch()
    async with open_store(server.url, "q") as store:
        producer = Producer(store, 5)
        await producer.send(job("before"))
        before = await snapshot(store)
        await store.link.command("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(ServerRefused, match="out of memory and takes no jobs"):
            await producer.send_all([job("a"), job("b", Special(1000, "", store.keys.unique("k"), 1000))])
        assert await snapshot(store) == before
        await store.link.command("CONFIG", "SET", "maxmemory", 0)
        assert await producer.send_all([job("a")]) == {}
        assert sorted(await index(store)) == ["a", "before"]


async def test_a_push_that_arrived_before_the_memory_was_full_is_acknowledged_when_repeated(launch: Launch) -> None:
    server = launch()
    async with Proxy(server) as proxy, open_store(server.url, "q") as store, open_store(proxy.url, "q") as remote:
        await prepare(remote)
        producer = Producer(remote, 10)
        proxy.hold_replies.clear()
        sending = producer.send(job("a"))
        await eventually(lambda: index(store))
        await store.link.command("CONFIG", "SET", "maxmemory", 1)
        proxy.cut()
        proxy.hold_replies.set()
        assert await sending is None
        assert list(await index(store)) == ["a"]


async def test_a_key_of_another_type_is_told_to_all_callers_and_nothing_is_written(store: Store) -> None:
    await store.link.command("SET", store.keys.scheduled, "x")
    before = await snapshot(store)
    producer = Producer(store, 5)
    answers = await asyncio.gather(producer.send(job("a")), producer.send(job("b")), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ServerRefused] * 2
    assert "choose another queue name" in str(answers[0])
    assert await snapshot(store) == before
    await store.link.command("DEL", store.keys.scheduled)


async def test_a_user_without_the_right_to_ask_the_time_writes_nothing(launch: Launch) -> None:
    server = launch()
    async with open_store(server.url, "q") as store:
        rights = "~aq:* &aq:* +@stream +@sortedset +@hash +@string +@list +@set +@scripting +@keyspace +@connection"
        await store.link.command(
            "ACL", "SETUSER", "app", "on", ">pw", *rights.split(), "+@transaction", "+@pubsub", "-@dangerous"
        )
        async with open_store(server.url, "q", username="app", password="pw") as app:
            producer = Producer(app, 5)
            with pytest.raises(ServerRefused, match=r"(?i)permission|can't run this command"):
                await producer.send(job("a"))
            assert await keys_of(store) == []
            await store.link.command("ACL", "SETUSER", "app", "+time")
            assert await producer.send(job("a")) is None
            assert await arrived(app) == ["a"]


async def test_a_wrong_password_is_refused_at_once_and_not_shown(launch: Launch) -> None:
    server = launch(requirepass="right")
    async with open_store(server.url.replace(":right@", ":sesame@"), "q") as store:
        with pytest.raises(ServerRefused, match="Check the user and password") as refused:
            await Producer(store, 30).send(job("a"))
        assert "sesame" not in str(refused.value)


async def test_no_server_is_given_up_in_time_with_the_address() -> None:
    url = "redis://:secret@127.0.0.1:1/0"
    async with open_store(url, "q") as store:
        with pytest.raises(ServerUnavailable, match=r"redis://:\*\*\*@127\.0\.0\.1:1/0 does not answer"):
            await Producer(store, 0.1).send(job("a"))


async def test_a_server_that_is_killed_and_comes_back_with_its_data(launch: Launch) -> None:
    server = launch(aof=True, appendfsync="always")
    async with open_store(server.url, "q") as store:
        producer = Producer(store, 20)
        await producer.send(job("a"))
        server.kill()
        sending = producer.send(job("b"))
        server.restart()
        assert await sending is None
        assert await arrived(store) == ["a", "b"]
        assert await letters(store) == []


# -- enqueue_many ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 1501])
async def test_enqueue_many_keeps_count_and_order(server: TestServer, name: str, store: Store, count: int) -> None:
    queue = Queue(name, url=server.url, lanes=store.lanes)

    @queue.task()
    async def number(n: int) -> int:
        return n

    async with queue:
        jobs = await queue.enqueue_many(number.call(n) for n in range(count))
    assert len({job.id for job in jobs}) == count
    assert all(job.created for job in jobs)
    got = [one.id for _ in range(count // BATCH + 1) for one in await claim(store, BATCH)]
    assert got == [job.id for job in jobs]
    assert await rung(store) <= 1


async def test_enqueue_many_names_the_jobs_that_were_there_already(server: TestServer, name: str, store: Store) -> None:
    queue = Queue(name, url=server.url, lanes=store.lanes)

    @queue.task()
    async def number(n: int) -> int:
        return n

    async with queue:
        calls = [number.options(job_id=f"n{n % 510}").call(n) for n in range(600)]
        jobs = await queue.enqueue_many(calls)
    assert [job.id for job in jobs] == [f"n{n % 510}" for n in range(600)]
    assert [job.created for job in jobs] == [n < 510 for n in range(600)]
    assert len(await index(store)) == 510


async def test_enqueue_many_that_fails_half_way_leaves_whole_batches(
    server: TestServer, name: str, store: Store
) -> None:
    queue = Queue(name, url=server.url, lanes=store.lanes, max_payload=100)

    @queue.task()
    async def say(text: str) -> None: ...

    async with queue:
        with pytest.raises(PayloadTooLarge, match="max_payload is 100"):
            await queue.enqueue_many(say.call("x" * (200 if n == 700 else 1)) for n in range(2000))
    assert len(await index(store)) == 500


async def test_enqueue_many_that_is_cancelled_leaves_whole_batches(proxy: Proxy, name: str, store: Store) -> None:
    queue = Queue(name, url=proxy.url, lanes=store.lanes)

    @queue.task()
    async def number(n: int) -> int:
        return n

    async with queue:
        await prepare(queue.stores[0])
        proxy.hold_replies.clear()
        sending = asyncio.create_task(queue.enqueue_many(number.call(n) for n in range(1500)))
        await eventually(lambda: index(store))
        sending.cancel()
        proxy.hold_replies.set()
        await asyncio.gather(sending, return_exceptions=True)
        assert sending.cancelled()
    assert len(await index(store)) % BATCH == 0


async def test_a_queue_that_is_opened_while_it_closes_is_open(launch: Launch) -> None:
    server = launch()
    queue = Queue("t", url=server.url)

    @queue.task()
    async def task(number: int) -> None: ...

    async def leave() -> None:
        async with queue:
            await raw(redis, "CLIENT", "PAUSE", "60000", "WRITE")
            pushes.append(asyncio.create_task(task.enqueue(1)))
            await eventually(lambda: queue._sender._producers[0]._flusher is not None)

    async def come() -> None:
        async with queue:
            await task.enqueue(2)

    pushes: list[asyncio.Task[Job[None]]] = []
    async with connect(server.url) as redis:
        leaving = asyncio.create_task(leave())
        await eventually(lambda: pushes and queue._opened == 0)
        coming = asyncio.create_task(come())
        for _ in range(20):  # Time enough to connect.
            await redis.ping()
        await raw(redis, "CLIENT", "UNPAUSE")
        await asyncio.gather(leaving, coming, *pushes)
        assert await size(redis, "t") == {**NOTHING, "lanes": 2, "index": 2}


async def test_a_script_cache_that_is_flushed_all_the_time_refuses_nobody(launch: Launch) -> None:
    server = launch()
    queue = Queue("t", url=server.url)

    @queue.task()
    async def task(number: int) -> None: ...

    async def flush() -> None:
        async with connect(server.url) as redis:
            while not pushed:
                await raw(redis, "SCRIPT", "FLUSH", "SYNC")

    pushed = False
    async with queue, connect(server.url) as redis:
        flushing = [asyncio.create_task(flush()) for _ in range(3)]
        try:
            for number in range(100):
                await task.enqueue(number)
        finally:
            pushed = True
            await asyncio.gather(*flushing)
        assert await size(redis, "t") == {**NOTHING, "lanes": 100, "index": 100}

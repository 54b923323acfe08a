"""Whatever comes in from outside: a clear error, or a dead letter with its reason; the worker goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from asyncq import (
    ArgumentError,
    ConfigError,
    JobFailed,
    PayloadTooLarge,
    Queue,
    QueueSettings,
    Retry,
    ServerRefused,
    ServerUnavailable,
    TaskError,
    UnknownTask,
    Worker,
    WorkerSettings,
    codec,
    lifecycle,
)
from asyncq.keys import Keys
from tests.conftest import Launch, connect
from tests.eventually import eventually
from tests.servers import TestServer
from tests.worker.recording import NOTHING, PROMPTLY, commands, letters, queue_of, size


@pytest.fixture
def queue(server: TestServer, name: str) -> Queue:
    return queue_of(server, name, max_payload=10_000)


@pytest.fixture
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "DEFER", Retry(attempts=3, backoff="constant", base=0.01))


def good_task(queue: Queue) -> Any:
    @queue.task()
    async def good() -> str:
        return "well"

    return good


async def buried(redis: Redis, queue: Queue, count: int = 1) -> list[dict[str, str]]:
    """The dead letters, once there are so many; nothing else may be left."""

    async def enough() -> list[dict[str, str]]:
        found = await letters(redis, queue.name)
        return found if len(found) == count else []

    found = await eventually(enough, PROMPTLY)
    left = await size(redis, queue.name)
    assert {**left, "index": 0} == {**NOTHING, "dead": count}
    return found


# -- jobs that no worker can run ----------------------------------------------------------------------------


async def test_an_unknown_task_is_put_off_and_then_dead_lettered(
    server: TestServer, queue: Queue, redis: Redis, little_patience: None
) -> None:
    newer = queue_of(server, queue.name)

    @newer.task()
    async def brand_new() -> None: ...

    good = good_task(queue)
    async with newer, queue, queue.worker(concurrency=1) as worker:
        job = await brand_new.enqueue()
        (letter,) = await buried(redis, queue)
        assert (letter["reason"], letter["attempts"]) == ("unknown task", "1")
        assert "this worker knows no task 'brand_new'" in letter["error"]
        assert worker.info().retried == 2
        with pytest.raises(JobFailed, match="knows no task 'brand_new'"):
            await job.result(PROMPTLY)
        assert await (await good.enqueue()).result(PROMPTLY) == "well"


async def test_an_unknown_task_runs_when_a_newer_worker_comes(
    server: TestServer, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "DEFER", Retry(attempts=1_000, backoff="constant", base=0.05))
    newer = queue_of(server, queue.name)

    @newer.task(retry=1)
    async def brand_new() -> str:
        return "ran"

    async with newer, queue:
        async with queue.worker(concurrency=1) as worker:
            job = await brand_new.enqueue()
            await eventually(lambda: worker.info().retried >= 1)
            assert (await job.info()).state in ("retrying", "queued", "running")
        async with newer.worker(concurrency=1):
            assert await job.result(PROMPTLY) == "ran"
            assert (await job.info()).attempt == 1


async def test_an_unknown_version_is_put_off_and_then_dead_lettered(
    queue: Queue, redis: Redis, little_patience: None
) -> None:
    good = good_task(queue)
    async with queue, queue.worker(concurrency=1):
        await redis.xadd(Keys(queue.name).lane("default"), {"id": "n", "job": b"\x63\0\1\0??", "crashes": "0"})
        await queue.stores[0].ring()
        (letter,) = await buried(redis, queue)
        assert letter["reason"] == "unknown version"
        assert "has version 99; this worker reads 1" in letter["error"]
        assert await (await good.enqueue()).result(PROMPTLY) == "well"


class Nested(msgspec.Struct):
    deeper: Any


WHOLE = codec.frame(codec.Body("good", msgspec.Raw(b"\x90"), 1))
UNREADABLE: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\x01",
    "a head and no body": WHOLE[:4],
    "truncated": WHOLE[:-2],
    "random": b"\x00" + os.urandom(100),
    "random body": codec.FRESH + b"\xc1" + os.urandom(100),
    "another type": codec.FRESH + msgspec.msgpack.encode({"task": "good"}),
    "wrong field types": codec.FRESH + msgspec.msgpack.encode([7, [], "x", None]),
    "a name that is not UTF-8": codec.FRESH + b"\x95\xa2\xff\xfe\x90\x01\x00\xc0",
    "nested too deep": codec.FRESH + b"\x95\xa4good" + b"\x91" * 100_000 + b"\x90\x01\x00\xc0",
    "trailing bytes": WHOLE + b"\x00",
}


@pytest.mark.parametrize("payload", UNREADABLE.values(), ids=UNREADABLE)
async def test_bytes_that_are_no_job_are_dead_lettered(queue: Queue, redis: Redis, payload: bytes) -> None:
    good = good_task(queue)
    async with queue, queue.worker(concurrency=1) as worker:
        await redis.xadd(Keys(queue.name).lane("default"), {"id": "odd", "job": payload, "crashes": "0"})
        assert await (await good.enqueue()).result(PROMPTLY) == "well"
        (letter,) = await buried(redis, queue)
        assert letter["reason"] == "undecodable"
        assert letter["id"] == "odd"
        assert "are not a job" in letter["error"] or "cannot be read" in letter["error"]
        assert worker.phase == "running"
        assert (await (await queue.job("odd")).info()).reason == "undecodable", "and it can be looked at"


@pytest.mark.parametrize(
    "fields",
    [
        {"hello": "world"},
        {b"\xff\xfe": b"\x00\x01"},
        {"job": WHOLE, "id": "x", "crashes": "0"},
        {"id": "x", "job": WHOLE},
        {"id": "x", "job": WHOLE, "crashes": "many"},
        {"id": b"\xff\xfe", "job": WHOLE, "crashes": "0"},
        {"id": "x", "job": WHOLE, "crashes": "-1"},
        {"id": "x", "job": WHOLE, "crashes": "0", "more": "here"},
    ],
    ids=["other", "binary", "order", "no crashes", "crashes no number", "id not UTF-8", "negative", "more"],
)
async def test_entries_added_by_hand_do_no_harm(
    queue: Queue, redis: Redis, fields: dict[Any, Any], little_patience: None
) -> None:
    """They run if they are jobs in all but name, and are dead letters otherwise."""
    good = good_task(queue)
    async with queue, queue.worker(concurrency=1) as worker:
        await redis.xadd(Keys(queue.name).lane("default"), fields)
        assert await (await good.enqueue()).result(PROMPTLY) == "well"
        await eventually(lambda: worker.info().dead + worker.info().succeeded == 2)
        left = await size(redis, queue.name)
        assert left["lanes"] == left["scheduled"] == 0
        for letter in await letters(redis, queue.name):
            assert letter["reason"] == "undecodable"
        assert worker.phase == "running"


async def test_an_entry_with_odd_fields_whose_worker_was_lost_is_buried_too(
    server: TestServer, name: str, redis: Redis
) -> None:
    queue = queue_of(server, name, visibility_timeout=0.3)
    good = good_task(queue)
    async with queue:
        await queue.stores[0].make_groups()
        lane = Keys(name).lane("default")
        await redis.xadd(lane, {"hello": "world"})
        await redis.xadd(lane, {"id": "x", "job": b"\x09", "crashes": "many"})
        await queue.stores[0].claim("lost", 5, [0], [0])
        async with queue.worker(concurrency=1):
            assert await (await good.enqueue()).result(PROMPTLY) == "well"

            async def lane_empty() -> bool:
                return await redis.xlen(lane) == 0

            await eventually(lane_empty, PROMPTLY)


async def test_arguments_that_fit_no_more_are_dead_lettered(server: TestServer, queue: Queue, redis: Redis) -> None:
    older = queue_of(server, queue.name)

    @older.task(name="task")
    async def before(text: str) -> None: ...

    @queue.task(name="task")
    async def after(number: int) -> None: ...

    async with older, queue, queue.worker(concurrency=1):
        job = await before.enqueue("seven")
        with pytest.raises(JobFailed, match="the arguments do not fit task: Expected `int`, got `str`"):
            await job.result(PROMPTLY)
        (letter,) = await buried(redis, queue)
        assert letter["reason"] == "arguments"


strict = False


class Checked(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        if strict:
            raise LookupError("the code of a dataclass may raise anything")


async def test_arguments_whose_own_code_raises_are_dead_lettered(
    queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    @queue.task()
    async def task(value: Checked) -> int:
        return value.number

    good = good_task(queue)
    async with queue:
        job = await task.enqueue(Checked(3))
        monkeypatch.setitem(globals(), "strict", True)
        async with queue.worker(concurrency=1) as worker:
            with pytest.raises(JobFailed, match="may raise anything"):
                await job.result(PROMPTLY)
            assert await (await good.enqueue()).result(PROMPTLY) == "well"
            assert worker.phase == "running"
        assert (await letters(redis, queue.name))[0]["reason"] == "arguments"


@pytest.mark.parametrize(
    "overrides",
    [
        {"result_ttl": 1e300},
        {"result_ttl": float("inf")},
        {"result_ttl": float("nan")},
        {"result_ttl": -5.0},
        {"timeout": float("nan")},
        {"timeout": -1.0},
        {"soft_timeout": -1.0},
        {"unique": "\0"},
    ],
    ids=str,
)
async def test_options_that_no_producer_of_ours_would_send_do_no_harm(
    queue: Queue, redis: Redis, overrides: dict[str, Any]
) -> None:
    good = good_task(queue)
    body = codec.Body("good", msgspec.Raw(b"\x90"), 1, 0, codec.Overrides(**overrides))
    async with queue, queue.worker(concurrency=1) as worker:
        entry: Any = {"id": "odd", "job": codec.frame(body), "crashes": "0"}
        await redis.xadd(Keys(queue.name).lane("default"), entry)
        assert await (await good.enqueue()).result(PROMPTLY) == "well"
        await eventually(lambda: worker.running == 0 and worker._finisher.waiting == 0)
        left = await size(redis, queue.name)
        assert left["lanes"] == 0
        assert left["index"] == left["dead"] + left["scheduled"]
        assert worker.phase == "running"


async def test_bad_jobs_do_not_make_the_worker_spin(launch: Launch) -> None:
    server = launch()
    queue = queue_of(server, "t")
    async with queue, queue.worker(concurrency=5), connect(server.url) as redis:
        for number in range(20):
            await redis.xadd("aq:{t}:lane:default", {"id": f"{number}", "job": b"\x63\0\1\0", "crashes": "0"})
        await queue.stores[0].ring()

        async def all_put_off() -> bool:
            return bool(await redis.zcard("aq:{t}:scheduled") == 20)

        await eventually(all_put_off, PROMPTLY)
        before = await commands(redis)
        await asyncio.sleep(1.0)
        assert await commands(redis) - before < 200


# -- at the producer ----------------------------------------------------------------------------------------


async def test_wrong_arguments_are_refused_before_anything_is_sent(queue: Queue, redis: Redis) -> None:
    @queue.task()
    async def task(number: int, text: str = "") -> None: ...

    async with queue:
        for wrong in (
            lambda: task.enqueue(),  # type: ignore[call-arg]
            lambda: task.enqueue("seven"),  # type: ignore[arg-type]
            lambda: task.enqueue(7, nothing=1),  # type: ignore[call-arg]
            lambda: task.enqueue(7, "a", "b"),  # type: ignore[call-arg]
            lambda: task.enqueue(7, text=b"\xff"),  # type: ignore[arg-type]
            lambda: task.enqueue(2**70),
            lambda: task.enqueue(7, "\ud800"),
            lambda: task.enqueue(object()),  # type: ignore[arg-type]
        ):
            with pytest.raises(ArgumentError, match=r"^task: "):
                await wrong()  # type: ignore[no-untyped-call]
    assert await size(redis, queue.name) == NOTHING


async def test_arguments_over_the_limit_are_refused_with_the_limit(queue: Queue, redis: Redis) -> None:
    @queue.task()
    async def task(blob: bytes) -> None: ...

    async with queue:
        with pytest.raises(PayloadTooLarge, match=r"task: the arguments are 20004 bytes, max_payload is 10000\."):
            await task.enqueue(b"x" * 20_000)
    assert await size(redis, queue.name) == NOTHING


async def test_a_queue_that_is_not_open_says_so(queue: Queue) -> None:
    good = good_task(queue)
    says = f"queue {queue.name} is not open: use it inside `async with queue:`"
    with pytest.raises(ConfigError, match=says):
        await good.enqueue()
    with pytest.raises(ConfigError, match=says):
        await queue.enqueue_many([good.call()])
    with pytest.raises(ConfigError, match=says):
        await queue.pause()
    async with queue:
        job = await good.enqueue()
        await job.cancel()
    with pytest.raises(ConfigError, match=says):
        await job.result()


async def test_enqueue_on_a_full_server_is_refused_and_nothing_written(launch: Launch) -> None:
    server = launch()
    queue = queue_of(server, "t")
    good = good_task(queue)
    async with queue, connect(server.url) as redis:
        await redis.config_set("maxmemory", 1)
        with pytest.raises(ServerRefused, match="is out of memory and takes no jobs"):
            await good.enqueue()
        await redis.config_set("maxmemory", 0)
        assert await size(redis, "t") == NOTHING
        job = await good.enqueue()
        async with queue.worker(concurrency=1):
            assert await job.result(PROMPTLY) == "well"


@pytest.mark.parametrize("place", ["lane:default", "index", "scheduled", "parked", "bell:default"])
async def test_a_key_of_another_type_is_refused_and_nothing_written(queue: Queue, redis: Redis, place: str) -> None:
    good = good_task(queue)
    key = f"aq:{{{queue.name}}}:{place}"
    async with queue:
        await redis.set(key, "somebody else's")
        before = {key async for key in redis.scan_iter(f"aq:{{{queue.name}}}:*")}
        with pytest.raises(ServerRefused, match="holds something else under a key of this queue"):
            await good.options(delay=60).enqueue()
        assert {key async for key in redis.scan_iter(f"aq:{{{queue.name}}}:*")} == before
        await redis.delete(key)


async def test_a_worker_does_not_start_on_a_lane_of_another_type(queue: Queue, redis: Redis) -> None:
    await redis.set(Keys(queue.name).lane("default"), "somebody else's")
    with pytest.raises(ServerRefused, match="holds something else under a key of this queue"):
        await Worker(queue).run()


# -- addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost", "begins with one of redis://, rediss://, unix://, embedded://"),
        ("localhost:6379", "begins with one of redis://"),
        ("redis://", "names no host; for example redis://localhost:6379/0"),
        ("redis://localhost:port/0", "is not a URL"),
        ("redis://localhost:99999/0", "is not a URL"),
        ("redis://localhost/zero", "its database is not a number"),
        ("redis://user:secret@localhost:port", "is not a URL"),
    ],
)
async def test_an_address_that_is_none_is_refused_without_its_password(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        async with Queue("q", url=url):
            pass
    assert "secret" not in str(caught.value)


async def test_no_server_and_a_wrong_password_are_told_apart(launch: Launch) -> None:
    server = launch(requirepass="right")
    wrong = server.tcp_url.replace("right", "wrong-secret")
    with pytest.raises(ServerRefused, match=r"does not let us in: .* Check the user and password") as caught:
        async with Queue("q", url=wrong):
            pass
    assert "wrong-secret" not in str(caught.value)
    with pytest.raises(ServerRefused, match="does not let us in"):
        async with Queue("q", url=server.tcp_url.replace(":right@", "")):
            pass
    async with Queue("q", url=server.tcp_url) as queue:
        await (await good_task(queue).enqueue()).cancel()
    server.stop()
    with pytest.raises(ServerUnavailable, match=r"does not answer: .* Is the server running"):
        async with Queue("q", url=server.tcp_url):
            pass
    with pytest.raises(ServerUnavailable, match="does not answer"):
        await Worker(Queue("q", url=server.url)).run()


# -- declarations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Queue("no spaces"), "queue name 'no spaces' cannot be used"),
        (lambda: Queue(""), "queue name '' cannot be used"),
        (lambda: Queue("q", lanes=()), "at least one lane is needed"),
        (lambda: Queue("q", lanes="high"), "a tuple of names is needed"),
        (lambda: Queue("q", lanes=("a", "a")), "a lane is named twice"),
        (lambda: Queue("q", lanes=("a b",)), "lane name 'a b' cannot be used"),
        (lambda: Queue("q", lanes=("dead",)), "not dead or scheduled"),
        (lambda: Queue("q", default_lane="x"), "queue q has no lane 'x'; it has default"),
        (lambda: Queue("q", shares={"x": 0.1}), "queue q has no lane 'x'"),
        (lambda: Queue("q", shares={"default": 2}), "must be from 0 to 1, not 2"),
        (lambda: Queue("q", visibility=1), "unknown setting visibility; there are url, lifespan, name"),
        (lambda: Queue("q", visibility_timeout=0), "visibility_timeout must be"),
        (lambda: Queue("q", max_crashes=0), "max_crashes must be at least 1"),
        (lambda: Queue("q", partitions=0), "partitions=0: must be from 1 to 1024"),
        (lambda: QueueSettings(name="q", result_ttl=-1), "result_ttl must"),
        (lambda: WorkerSettings(concurrency=0), "concurrency=0: must be at least 1"),
        (lambda: WorkerSettings(grace=-1), "grace must"),
        (lambda: WorkerSettings(name="a b"), "must not contain spaces"),
        (lambda: Worker(Queue("q"), lanes=("x",)), "queue q has no lane 'x'"),
        (lambda: Retry(attempts=0), r"Retry\(attempts=0\): must be from 1"),
        (lambda: Retry(backoff="random"), "exponential, linear or constant"),  # type: ignore[arg-type]
        (lambda: Retry(on=("ValueError",)), "exception classes are needed"),  # type: ignore[arg-type]
        (lambda: Queue("q").task(lane="x"), "queue q has no lane 'x'"),
        (lambda: Queue("q").task(timeout=0), "timeout=0"),
        (lambda: Queue("q").task(timeout=1, soft_timeout=2), r"soft_timeout=2(\.0)? must be below timeout=1"),
        (lambda: good_task(Queue("q")).options(priority=1), "unknown option priority; there are delay, lane"),
        (lambda: good_task(Queue("q")).options(lane="x"), "queue q has no lane 'x'"),
        (lambda: good_task(Queue("q")).options(delay=-1), "delay=-1"),
        (lambda: good_task(Queue("q")).options(delay=float("nan")), "delay=nan"),
        (lambda: good_task(Queue("q")).options(result_ttl=float("inf")), "result_ttl=inf"),
        (lambda: good_task(Queue("q")).options(tags="red"), r"tags.*(a list of words is needed|cannot be used)"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


async def test_a_job_id_that_cannot_be_used_is_refused(queue: Queue) -> None:
    good = good_task(queue)
    async with queue:
        for job_id in ("", "a b", "-x", "x~1", "ä", "x" * 129):
            with pytest.raises(ConfigError, match=r"job_id .* cannot be used"):
                await good.options(job_id=job_id).enqueue()


def test_an_id_and_a_uniqueness_key_cannot_both_choose_the_partition() -> None:
    for partitions in (1, 2):
        queue = Queue("q", partitions=partitions)

        @queue.task()
        async def task() -> None: ...

        task.options(job_id="a").options(job_id=None, unique="k")
        if partitions == 1:
            task.options(job_id="a", unique="k")
        else:
            with pytest.raises(ConfigError, match="several partitions: give a job_id or a unique key"):
                task.options(job_id="a").options(unique="k")


def test_a_task_name_may_be_taken_once(queue: Queue) -> None:
    good_task(queue)
    with pytest.raises(TaskError, match=f"queue {queue.name} already has a task 'good'; give this one another name"):
        good_task(queue)
    with pytest.raises(UnknownTask, match=r"has no task 'bad'; registered: good"):
        queue.find_task("bad")


def test_a_decorator_without_parentheses_is_explained(queue: Queue) -> None:
    with pytest.raises(TaskError, match=r"write @queue\.task\(\), with parentheses"):

        @queue.task  # type: ignore[arg-type]
        async def task() -> None: ...

    with pytest.raises(TaskError, match="decorates functions"):
        queue.task()(7)  # type: ignore[call-overload]


class Opaque:
    pass


def test_annotations_that_cannot_cross_are_refused_when_the_task_is_declared(queue: Queue) -> None:
    def argument(value: Opaque | int) -> None: ...

    def result() -> Opaque | int:
        return 1

    def unreadable(value: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    def unreadable_within(value: list["NoSuchType"]) -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    def two_structs(value: Checked | Nested) -> None: ...

    for function, says in (
        (argument, "Arguments cross as msgpack: use what msgspec knows"),
        (result, "its result cannot cross as msgpack"),
        (unreadable, "its signature cannot be read: name 'NoSuchType' is not defined"),
        (unreadable_within, "name 'NoSuchType' is not defined"),
        (two_structs, "Arguments cross as msgpack"),
    ):
        with pytest.raises(TaskError, match=says):
            queue.task()(function)
    with pytest.raises(TaskError, match="an `async def` runs in the event loop"):

        @queue.task(process=True)
        async def task() -> None: ...

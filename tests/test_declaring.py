"""What cannot work as a task is refused where it is declared, not where its first job runs."""

from __future__ import annotations

import functools
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import pytest

from asyncq import ArgumentError, ConfigError, JobEnded, JobFailed, Queue, TaskError, Worker
from asyncq.arguments import Arguments
from asyncq.task import AsyncTask
from tests.servers import TestServer
from tests.worker.recording import PROMPTLY, queue_of


@pytest.fixture
def queue(server: TestServer, name: str) -> Queue:
    return queue_of(server, name)


class Model:
    """A class that msgspec does not know."""


@dataclass
class Tree:
    name: str
    children: list[Tree]


@dataclass
class Holder:
    models: list[Model]


class Methods:
    def method(self, number: int) -> int:
        return number

    async def coroutine(self, number: int) -> int:
        return number

    @classmethod
    def of_class(cls, number: int) -> int:
        return number


class CallableObject:
    async def __call__(self, number: int) -> int:
        return number + 1


def generator(number: int) -> Iterator[int]:
    yield number


async def async_generator(number: int) -> AsyncIterator[int]:
    yield number


def takes_model(model: Model | None) -> None: ...


def holds_models(holder: Holder) -> None: ...


def gives_model() -> Model:
    return Model()


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (generator, "task generator is a generator"),
        (async_generator, "task async_generator is a generator"),
        (Methods.method, "begins with 'self'"),
        (Methods.coroutine, "begins with 'self'"),
        (lambda: None, "has no name"),
        (functools.partial(pow, 2), "has no name"),
        (takes_model, r"test_declaring\.Model is not a type that msgspec knows.*model_dump"),
        (holds_models, r"test_declaring\.Model is not a type that msgspec knows"),
        (gives_model, r"its result cannot cross as msgpack: .*\.Model is not"),
    ],
)
def test_what_cannot_be_a_task_is_refused(function: Callable[..., Any], says: str) -> None:
    queue = Queue("q")
    with pytest.raises(TaskError, match=says):
        queue.task()(function)
    assert queue.tasks == {}


def test_a_process_needs_a_function_that_it_can_find() -> None:
    def inner() -> None: ...

    with pytest.raises(TaskError, match="process=True is for functions at the top of a module"):
        Queue("q").task(process=True)(inner)


def test_what_can_hold_plain_values_is_taken() -> None:
    def wide(a: object, b: Hashable, c: Number, d: Sequence[int], e: Mapping[str, Any], f: Tree) -> object: ...

    queue = Queue("q")
    queue.task()(wide)
    queue.task("of class")(Methods.of_class)
    queue.task("bound")(Methods().method)
    queue.task("lambda")(lambda: None)
    queue.task("no result is kept", result_ttl=0)(gives_model)
    assert len(queue.tasks) == 5


def test_a_wrong_argument_is_named() -> None:
    def function(first: int, tree: Tree, *, last: float = 0.0) -> None: ...

    arguments = Arguments(function, "function")
    with pytest.raises(ArgumentError, match=r"Expected `int`, got `str` - at `first`"):
        arguments.encode(("x", Tree("a", [])), {})
    with pytest.raises(ArgumentError, match=r"Expected `str`, got `int` - at `tree\.children\[0\]\.name`"):
        arguments.encode((1, Tree("a", [Tree(7, [])])), {})  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"at `last`"):
        arguments.encode((1, Tree("a", [])), {"last": "x"})


async def test_an_unknown_setting_of_a_worker_is_named() -> None:
    queue = Queue("q")
    with pytest.raises(ConfigError, match="unknown setting concurency; there are concurrency, grace"):
        Worker(queue, concurency=3)
    with pytest.raises(ConfigError, match="unknown setting concurency"):
        async with queue.worker(concurency=3):
            pass


async def test_an_object_with_an_async_call_runs_in_the_event_loop(queue: Queue) -> None:
    task = queue.task("object")(CallableObject())
    assert isinstance(task, AsyncTask)
    async with queue, queue.worker(concurrency=1):
        assert await (await task.enqueue(1)).result(PROMPTLY) == 2


@pytest.mark.parametrize("result_ttl", [None, 0])
async def test_a_coroutine_that_nobody_awaits_is_not_a_result(queue: Queue, result_ttl: float | None) -> None:
    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            time.monotonic()
            return function(*args, **kwargs)

        return wrapper

    @queue.task(retry=1, result_ttl=result_ttl)
    @traced
    async def wrapped() -> int:
        return 1

    async with queue, queue.worker(concurrency=1):
        with pytest.raises(JobFailed, match="wrapped returned a coroutine that nobody awaited"):
            await (await wrapped.enqueue()).result(PROMPTLY)


async def test_a_result_that_does_not_fit_raises_an_error_of_ours_and_can_be_looked_at(queue: Queue) -> None:
    @queue.task()
    async def task() -> int:
        return "seven"  # type: ignore[return-value]

    async with queue, queue.worker(concurrency=1):
        job = await task.enqueue()
        with pytest.raises(JobEnded, match="does not fit the annotation of task: Expected `int`, got `str`"):
            await job.result(PROMPTLY)
        assert (await job.info()).value == "seven"

"""A task: a registered function, and its calls.

`Task[P, R]` keeps the function's signature, so a wrong argument is a type error in the editor. At run time
the arguments are encoded and decoded once at the producer, exactly as the worker will: what does not fit
there raises `ArgumentError` here, before anything is sent.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar

import msgspec

from asyncq.arguments import Arguments, refuse_unknown_types
from asyncq.config import QueueSettings
from asyncq.errors import ConfigError, PayloadTooLarge, TaskError
from asyncq.handle import Job
from asyncq.options import CallOptions, TaskOptions

__all__ = ["AsyncTask", "Call", "Task"]

P = ParamSpec("P")
R = TypeVar("R")


class Call(Generic[R]):
    """One call of a task, ready to be enqueued: `task.call(...)`, for `queue.enqueue_many`."""

    __slots__ = ("encoded", "options", "task")

    def __init__(self, task: Task[..., R], encoded: bytes, options: CallOptions) -> None:
        self.task, self.encoded, self.options = task, encoded, options

    def __repr__(self) -> str:
        return f"<Call of {self.task.name}, {len(self.encoded)} bytes>"


def _refuse_what_cannot_run(function: Callable[..., Any], name: str) -> None:
    if name in ("", "<lambda>"):
        raise TaskError(f'{function!r} has no name that a job could carry: give one, @queue.task("name")')
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TaskError(
            f"task {name} is a generator: calling it runs nothing. Write a function that returns its result; "
            "current_job().progress(...) tells how far it is"
        )
    code = getattr(function, "__code__", None)
    if code and not inspect.ismethod(function) and code.co_argcount and code.co_varnames[0] in ("self", "cls"):
        raise TaskError(
            f"task {name} begins with {code.co_varnames[0]!r}, but a job has no object to call it on. "
            "Use a function or a staticmethod; current_job() is the job that runs"
        )


class Home(Protocol):
    """What a task asks of its queue."""

    name: str
    settings: QueueSettings

    async def enqueue(self, call: Call[R]) -> Job[R]: ...


class Task(Generic[P, R]):
    """A function registered with a queue. Calling it runs the function here and now; `enqueue` makes a job."""

    def __init__(
        self, queue: Home, function: Callable[P, Any], name: str, options: TaskOptions, call_options: CallOptions
    ) -> None:
        _refuse_what_cannot_run(function, name)
        self.queue, self.function, self.name = queue, function, name
        self.defaults, self.call_options = options, call_options
        self.arguments = Arguments(function, name)
        self.is_async = isinstance(self, AsyncTask)
        self.__doc__, self.__wrapped__ = function.__doc__, function
        self.__module__, self.__qualname__ = function.__module__, getattr(function, "__qualname__", name)
        if options.process and self.is_async:
            raise TaskError(f"task {name}: process=True is for `def` functions; an `async def` runs in the event loop")
        if options.process and "<" in self.__qualname__:
            raise TaskError(
                f"task {name}: process=True is for functions at the top of a module, where the child process "
                f"finds them by name; this one is {self.__qualname__}"
            )
        try:
            returns = inspect.signature(function, eval_str=True).return_annotation
            known = returns is not inspect.Signature.empty
            self.decode_value = msgspec.msgpack.Decoder(returns if known else Any).decode
            if known and options.result_ttl != 0:
                refuse_unknown_types(returns)
        except (TypeError, NameError) as error:
            raise TaskError(f"task {name}: its result cannot cross as msgpack: {error}") from error

    def __repr__(self) -> str:
        return f"<Task {self.name} of queue {self.queue.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self.function(*args, **kwargs)
        return result

    def options(self, **changes: Any) -> Self:
        """The same task with `CallOptions` for the jobs enqueued through it.

        Raises:
            ConfigError: an unknown option or one that makes no sense.
        """
        unknown = changes.keys() - set(CallOptions.__struct_fields__)
        if unknown:
            known = ", ".join(CallOptions.__struct_fields__)
            raise ConfigError(f"unknown option {', '.join(sorted(unknown))}; there are {known}")
        current = {name: getattr(self.call_options, name) for name in CallOptions.__struct_fields__}
        twin = object.__new__(type(self))
        options = CallOptions(**{**current, **changes})
        twin.__dict__.update(self.__dict__, call_options=options)
        settings = self.queue.settings
        if options.lane is not None:
            settings.lane_number(options.lane)
        if settings.partitions > 1 and options.job_id is not None and options.unique:
            # Each says by itself in which partition the job lives, and a script sees only one.
            raise ConfigError(f"queue {settings.name} has several partitions: give a job_id or a unique key, not both")
        return twin

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """This call, checked and encoded, for `queue.enqueue_many`.

        Raises:
            ArgumentError: the arguments do not fit the signature.
            PayloadTooLarge: encoded they exceed the queue's max_payload.
        """
        encoded = self.arguments.encode(args, kwargs)
        if len(encoded) > self.queue.settings.max_payload:
            raise PayloadTooLarge(
                f"{self.name}: the arguments are {len(encoded)} bytes, max_payload is "
                f"{self.queue.settings.max_payload}. Store large data elsewhere and pass a reference"
            )
        return Call(self, encoded, self.call_options)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Make a job of this call. When it returns, the job is in Redis, exactly once.

        Raises:
            ArgumentError, PayloadTooLarge: nothing was sent.
            ServerRefused: the server would not take it; nothing was written.
            ServerUnavailable: no answer within the queue's enqueue_timeout; the job may be there or not, so
                repeat only with a `job_id` of your own.
        """
        return await self.queue.enqueue(self.call(*args, **kwargs))


class AsyncTask(Task[P, R]):
    """A task that is an `async def`: calling it makes a coroutine, as calling the function does."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # type: ignore[override]
        coroutine: Coroutine[Any, Any, R] = self.function(*args, **kwargs)
        return coroutine

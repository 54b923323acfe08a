"""A task: a registered function, its options, and the msgpack type its signature makes.

`Task[P, R]` keeps the function's signature, so a wrong argument is a type error in the editor. At run time
the arguments are encoded and decoded once at the producer, exactly as the worker will: what does not fit
there raises `ArgumentError` here, before anything is sent.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar

import msgspec

from asyncq import codec
from asyncq.backoff import Retry
from asyncq.clock import LONGEST_S
from asyncq.config import QueueSettings, check_types
from asyncq.errors import ArgumentError, ConfigError, PayloadTooLarge, TaskError
from asyncq.handle import Job

__all__ = ["Arguments", "AsyncTask", "Call", "CallOptions", "Task", "TaskOptions"]

P = ParamSpec("P")
R = TypeVar("R")


class TaskOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What every job of a task gets unless one enqueue says otherwise. Times are seconds.

    lane:          where its jobs wait; empty for the queue's default lane
    retry:         how often and when it runs again
    timeout:       a run is stopped after this long and counts as failed; None for no limit
    soft_timeout:  `SoftTimeout` is raised inside the run after this long; None for none
    result_ttl:    how long its results are kept; 0 keeps none, None is the queue's
    process:       run a `def` task in a process of its own, which is killed on timeout or cancel
    """

    lane: str = ""
    retry: Retry = Retry()
    timeout: float | None = 300.0
    soft_timeout: float | None = None
    result_ttl: float | None = None
    process: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("timeout", "soft_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= LONGEST_S:
                raise ConfigError(f"{name}={value}: seconds above 0, or None for no limit")
        if self.soft_timeout and self.timeout and self.soft_timeout >= self.timeout:
            raise ConfigError(f"soft_timeout={self.soft_timeout} must be below timeout={self.timeout}")
        if self.result_ttl is not None and not 0 <= self.result_ttl <= LONGEST_S:
            raise ConfigError("result_ttl must be from 0 seconds, which keeps no results, to 100 years")


class CallOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What one enqueue changes. Times are seconds.

    delay:       not before this long from now
    lane:        another lane than the task's
    job_id:      an id of your own: while such a job is live, dead-lettered or its result kept, enqueueing again
                 returns that job
    expires:     no run, first or again, begins later than this from now: it is dead-lettered as expired
    unique:      a key that one job at a time may hold; enqueueing again returns the job that holds it
    unique_ttl:  how long it is held at most; released when the job ends
    timeout, soft_timeout, result_ttl: instead of the task's
    tags:        words to find the job by
    """

    delay: float = 0.0
    lane: str | None = None
    job_id: str | None = None
    expires: float | None = None
    unique: str | None = None
    unique_ttl: float = 3600.0
    timeout: float | None = None
    soft_timeout: float | None = None
    result_ttl: float | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("delay", "expires", "result_ttl"):
            if not 0 <= (getattr(self, name) or 0) <= LONGEST_S:
                raise ConfigError(f"{name}={getattr(self, name)}: seconds from 0 to 100 years")
        for name in ("timeout", "soft_timeout", "unique_ttl"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= LONGEST_S:
                raise ConfigError(f"{name}={value}: seconds above 0, up to 100 years")

    @property
    def overrides(self) -> codec.Overrides | None:
        """What of this the worker needs to know; None when it is nothing."""
        if self == _PLAIN:
            return None
        return codec.Overrides(
            timeout=self.timeout,
            soft_timeout=self.soft_timeout,
            result_ttl=self.result_ttl,
            unique=self.unique,
            tags=tuple(self.tags) or None,
        )


_PLAIN = CallOptions()


class Arguments:
    """The arguments of one function, to msgpack and back.

    They are a msgpack array in the order of the parameters; `*args` is an array in its place, `**kwargs` a
    map. Trailing parameters with defaults may be missing, so a worker may know more of them than a producer.
    """

    __slots__ = ("_decode", "_positional", "_signature", "_struct", "name")

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.name = name
        try:
            self._signature = inspect.signature(function, eval_str=True)
        except (NameError, TypeError, ValueError) as error:
            raise TaskError(f"task {name}: its signature cannot be read: {error}") from error
        parameters = self._signature.parameters.values()
        self._positional = all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters)
        try:
            self._struct: Any = msgspec.defstruct(
                f"{name}()", _fields(self._signature), array_like=True, forbid_unknown_fields=True, gc=False
            )
            self._decode = msgspec.msgpack.Decoder(self._struct).decode
            _refuse_unknown_types(self._struct)
        except (TypeError, NameError) as error:
            raise TaskError(f"task {name}: {error}. {_WHAT_CROSSES}") from error

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The arguments as bytes, checked as the worker will check them.

        Raises:
            ArgumentError: they do not fit the signature, or are of a type that cannot be encoded.
        """
        try:
            values = self._struct(*args, **kwargs) if self._positional else self._bind(args, kwargs)
            encoded = codec.encode(values)
            self._decode(encoded)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ArgumentError(f"{self.name}: {self._named(error)}") from error
        return encoded

    def _named(self, error: BaseException) -> str:
        """What msgspec says, with the parameter's name in place of its number."""
        names = list(self._signature.parameters)
        return re.sub(r"`\$\[(\d+)\]", lambda found: f"`{names[int(found[1])]}", str(error))

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        return self._struct(**bound.arguments)

    def decode(self, encoded: msgspec.Raw) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments to call the function with.

        Raises:
            msgspec.DecodeError: they do not fit (msgspec.ValidationError is a subclass).
        """
        try:
            values = msgspec.structs.astuple(self._decode(encoded))
        except msgspec.ValidationError as error:
            raise msgspec.ValidationError(self._named(error)) from error
        if self._positional:
            return values, {}
        return self._spread(values)

    def _spread(self, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter, value in zip(self._signature.parameters.values(), values, strict=True):
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                args += value
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                kwargs.update(value)
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                kwargs[parameter.name] = value
            else:
                args.append(value)
        return tuple(args), kwargs


_WHAT_CROSSES = (
    "Arguments cross as msgpack: use what msgspec knows "
    "(int, str, list, dict, dataclass, Struct, datetime, UUID, Decimal, Enum, ...)"
)
_DECODED = (bool, int, float, str, bytes, list, dict, type(None))
"""What msgpack without a type decodes to."""


def _refuse_unknown_types(kind: Any) -> None:
    """msgspec takes any class in a signature, but no value of a class that it does not know.

    Raises:
        TypeError: there is such a class.
    """
    for unknown in _custom_types(msgspec.inspect.type_info(kind), set()):
        if isinstance(unknown, type) and not _may_hold_plain(unknown):
            raise TypeError(
                f"{unknown.__module__}.{unknown.__qualname__} is not a type that msgspec knows; "
                "of a pydantic model, pass its model_dump()"
            )


def _custom_types(info: Any, seen: set[int]) -> Iterator[Any]:
    if id(info) in seen:
        return
    seen.add(id(info))
    if isinstance(info, msgspec.inspect.CustomType):
        yield info.cls
    elif isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field):
        for field in info.__struct_fields__:
            yield from _custom_types(getattr(info, field), seen)
    elif isinstance(info, tuple):
        for part in info:
            yield from _custom_types(part, seen)


def _may_hold_plain(kind: type) -> bool:
    try:
        return any(issubclass(plain, kind) for plain in _DECODED)
    except TypeError:  # a Protocol that cannot be asked
        return True


def _fields(signature: inspect.Signature) -> list[Any]:
    """The fields of the struct: (name, type) or (name, type, default) for each parameter."""
    fields: list[Any] = []
    defaulted = False
    for parameter in signature.parameters.values():
        empty = inspect.Parameter.empty
        kind: Any = Any if parameter.annotation is empty else parameter.annotation
        default: Any = parameter.default
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            kind, default = list[kind], ()
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            kind, default = dict[str, kind], {}
        if default is empty and not defaulted:
            fields.append((parameter.name, kind))
            continue
        # A keyword-only parameter may be required after one with a default; the binding has checked it.
        defaulted = True
        value = None if default is empty else default
        fields.append((parameter.name, kind, msgspec.field(default_factory=partial(_same, value))))
    return fields


def _same(value: Any) -> Any:
    """A parameter's default is one object for all calls, as in the function itself."""
    return value


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
                _refuse_unknown_types(returns)
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

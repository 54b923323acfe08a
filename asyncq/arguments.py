"""The arguments of a task, to msgpack and back, by a type made of its signature."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec

from asyncq import codec
from asyncq.errors import ArgumentError, TaskError

__all__ = ["Arguments", "refuse_unknown_types"]


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
            refuse_unknown_types(self._struct)
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


def refuse_unknown_types(kind: Any) -> None:
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

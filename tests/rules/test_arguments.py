"""Arguments cross as msgpack and arrive as what the signature says; what does not fit stays at the producer."""

import enum
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, NewType, Optional, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncq.arguments import Arguments
from asyncq.errors import ArgumentError, TaskError


@dataclass
class Point:
    x: int
    y: int = 0


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Order(msgspec.Struct):
    id: int
    lines: list[Point]
    paid: Decimal | None = None


class Movie(TypedDict):
    name: str
    year: int


UserId = NewType("UserId", int)


def typed(
    number: int,
    ratio: float,
    text: str,
    raw: bytes,
    flag: bool,
    point: Point,
    order: Order,
    colour: Colour,
    level: Level,
    when: datetime,
    day: date,
    clock: time,
    span: timedelta,
    job: uuid.UUID,
    price: Decimal,
    names: set[str],
    pair: tuple[int, str],
    table: dict[str, list[int]],
    movie: Movie,
    user: UserId,
    mode: Literal["a", "b"],
    maybe: Optional[int],  # noqa: UP045
    anything: Any,
) -> None: ...


TYPED: dict[str, Any] = {
    "number": -(2**63),
    "ratio": 0.1,
    "text": "é\u2028\x00",
    "raw": b"\x00\xff\n",
    "flag": True,
    "point": Point(1, 2),
    "order": Order(7, [Point(1), Point(2, 3)], Decimal("1.10")),
    "colour": Colour.BLUE,
    "level": Level.HIGH,
    "when": datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC),
    "day": date(2024, 5, 6),
    "clock": time(1, 2, 3),
    "span": timedelta(days=1, microseconds=5),
    "job": uuid.UUID(int=5),
    "price": Decimal("0.1000"),
    "names": {"a", "b"},
    "pair": (1, "x"),
    "table": {"a": [1, 2], "": []},
    "movie": {"name": "x", "year": 1999},
    "user": UserId(4),
    "mode": "b",
    "maybe": None,
    "anything": {"a": [1, None, b"x", 1.5]},
}


def cross(function: Any, /, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the function will be called with."""
    arguments = Arguments(function, function.__name__)
    return arguments.decode(msgspec.Raw(arguments.encode(args, kwargs)))


def test_every_type_arrives_as_itself() -> None:
    args, kwargs = cross(typed, **TYPED)
    assert kwargs == {}
    for (name, sent), arrived in zip(TYPED.items(), args, strict=True):
        assert (arrived, type(arrived)) == (sent, type(sent)), name
    assert cross(typed, *TYPED.values()) == (args, {})


# -- kinds of parameters --------------------------------------------------------------------------------------


def plain(a: int, b: int = 2, c: list[int] = [3]) -> None: ...  # noqa: B006
def keyword(a: int, *, b: int, c: int = 3) -> None: ...
def required_after_default(a: int = 1, *, b: int) -> None: ...
def positional(a: int, b: int = 2, /, c: int = 3) -> None: ...
def many(*numbers: int) -> None: ...
def named(**numbers: int) -> None: ...
def everything(a: int, /, b: int, *rest: str, c: int = 3, **more: Point) -> None: ...
def untyped(a, b=None, *rest, **more): ...  # type: ignore[no-untyped-def]
def nothing() -> None: ...
def shadow(a: int, /, **more: int) -> None: ...
def odd_names(self: int, cls: int, args: int, kwargs: int, name: int, function: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "arrives"),
    [
        (plain, (1,), {}, ((1, 2, [3]), {})),
        (plain, (1, 5), {}, ((1, 5, [3]), {})),
        (plain, (), {"c": [4], "a": 1}, ((1, 2, [4]), {})),
        (keyword, (1,), {"b": 2}, ((1,), {"b": 2, "c": 3})),
        (keyword, (), {"a": 1, "b": 2, "c": 4}, ((1,), {"b": 2, "c": 4})),
        (required_after_default, (), {"b": 2}, ((1,), {"b": 2})),
        (required_after_default, (5,), {"b": 2}, ((5,), {"b": 2})),
        (positional, (1,), {}, ((1, 2, 3), {})),
        (positional, (1, 4), {"c": 5}, ((1, 4, 5), {})),
        (many, (), {}, ((), {})),
        (many, (1, 2, 3), {}, ((1, 2, 3), {})),
        (named, (), {}, ((), {})),
        (named, (), {"x": 1, "y": 2}, ((), {"x": 1, "y": 2})),
        (everything, (1, 2), {}, ((1, 2), {"c": 3})),
        (everything, (1, 2, "x", "y"), {"c": 4, "p": Point(1)}, ((1, 2, "x", "y"), {"c": 4, "p": Point(1)})),
        (everything, (1,), {"b": 2, "a": Point(9)}, ((1, 2), {"c": 3, "a": Point(9)})),
        (untyped, ("x",), {}, (("x", None), {})),
        (untyped, ("x", 1, 2, 3), {"k": [1]}, (("x", 1, 2, 3), {"k": [1]})),
        (nothing, (), {}, ((), {})),
        (shadow, (1,), {"a": 2}, ((1,), {"a": 2})),
        (odd_names, (1, 2, 3, 4), {"name": 5, "function": 6}, ((1, 2, 3, 4, 5, 6), {})),
    ],
)
def test_calls(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], arrives: Any) -> None:
    assert cross(function, *args, **kwargs) == arrives
    got_args, got_kwargs = arrives
    function(*got_args, **got_kwargs)


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (plain, (), {}),
        (plain, (1, 2, [3], 4), {}),
        (plain, (1,), {"a": 1}),
        (plain, (1,), {"z": 1}),
        (plain, ("1",), {}),
        (plain, (1.5,), {}),
        (plain, (None,), {}),
        (plain, (True,), {"b": "x"}),
        (plain, (1,), {"c": 3}),
        (plain, (1,), {"c": ["x"]}),
        (keyword, (1,), {}),
        (keyword, (1, 2), {}),
        (required_after_default, (1,), {}),
        (positional, (), {"a": 1}),
        (many, (1, "x"), {}),
        (named, (), {"x": "y"}),
        (named, (1,), {}),
        (everything, (1, 2, 3), {}),
        (everything, (1, 2), {"p": {"z": 1}}),
        (nothing, (1,), {}),
        (plain, (2**64,), {}),
        (untyped, (object(),), {}),
        (untyped, (lambda: None,), {}),
        (untyped, ({1: {2, 3}, "k": print},), {}),
        (untyped, ("\ud800",), {}),
        (untyped, (2**64,), {}),
    ],
)
def test_calls_that_do_not_fit(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"^{function.__name__}: "):
        cross(function, *args, **kwargs)


def test_a_structure_that_never_ends() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ArgumentError):
        cross(untyped, endless)


def test_a_dataclass_with_a_field_of_the_wrong_type() -> None:
    def draw(point: Point) -> None: ...

    with pytest.raises(ArgumentError, match=r"draw: Expected `int`, got `str`.*x"):
        cross(draw, Point("left"))  # type: ignore[arg-type]


# -- producers and workers of different versions --------------------------------------------------------------


def test_a_worker_may_know_more_parameters_than_the_producer() -> None:
    def old(a: int) -> None: ...
    def new(a: int, b: str = "later") -> None: ...

    sent = Arguments(old, "f").encode((1,), {})
    assert Arguments(new, "f").decode(msgspec.Raw(sent)) == ((1, "later"), {})


def test_a_worker_that_knows_fewer_parameters_says_so() -> None:
    def old(a: int) -> None: ...
    def new(a: int, b: str = "later") -> None: ...

    sent = Arguments(new, "f").encode((1,), {})
    with pytest.raises(msgspec.ValidationError, match="at most length 1"):
        Arguments(old, "f").decode(msgspec.Raw(sent))


@pytest.mark.parametrize("junk", [b"", b"\x01", b"\xc0", b"\x81\x01\x02", b"\x91", b"\x91\xc1", b"\x91\x01\x01"])
def test_bytes_that_are_no_arguments_raise_a_decode_error(junk: bytes) -> None:
    def one(a: int) -> None: ...

    with pytest.raises(msgspec.DecodeError):
        Arguments(one, "f").decode(msgspec.Raw(junk))


# -- signatures -----------------------------------------------------------------------------------------------


def test_an_annotation_that_names_nothing_is_refused_at_registration() -> None:
    def lost(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(TaskError, match=r"lost.*signature cannot be read.*Nowhere"):
        Arguments(lost, "lost")


def test_a_signature_that_cannot_be_told_apart_is_refused_at_registration() -> None:
    def either(a: Point | Order) -> None: ...

    with pytest.raises(TaskError, match=r"either: .*msgpack"):
        Arguments(either, "either")


def test_a_default_is_one_object_for_all_calls_as_in_the_function_itself() -> None:
    sentinel = [1]

    def shared(a: list[int] = sentinel) -> None: ...

    assert Arguments(shared, "f").decode(msgspec.Raw(b"\x90"))[0][0] is sentinel


# -- round trips ----------------------------------------------------------------------------------------------

MOMENTS = st.datetimes(timezones=st.just(UTC))
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def round_trip(
    number: int, text: str, raw: bytes, when: datetime, job: uuid.UUID, price: Decimal, points: list[Point]
) -> None: ...


ROUND_TRIP = Arguments(round_trip, "round_trip")


@given(
    st.tuples(
        st.integers(-(2**63), 2**64 - 1),
        TEXT,
        st.binary(),
        MOMENTS,
        st.uuids(),
        st.decimals(allow_nan=False, allow_infinity=False),
        st.lists(st.builds(Point, st.integers(-99, 99), st.integers(-99, 99)), max_size=5),
    )
)
def test_typed_values_come_back_as_they_were(values: tuple[Any, ...]) -> None:
    args, kwargs = ROUND_TRIP.decode(msgspec.Raw(ROUND_TRIP.encode(values, {})))
    assert (args, kwargs) == (values, {})


@given(st.lists(st.integers(-99, 99), max_size=5), st.dictionaries(TEXT.filter(bool), st.integers(-99, 99), max_size=5))
def test_any_number_of_arguments_come_back_as_they_were(numbers: list[int], more: dict[str, int]) -> None:
    def f(*numbers: int, **more: int) -> None: ...

    assert cross(f, *numbers, **more) == (tuple(numbers), more)


@given(st.integers() | st.floats() | TEXT | st.binary() | st.none() | st.lists(st.integers(0, 9), max_size=2))
def test_a_value_either_arrives_as_an_int_or_is_refused(value: Any) -> None:
    def f(a: int) -> None: ...

    try:
        ((arrived,), _) = cross(f, value)
    except ArgumentError:
        return
    assert type(arrived) is int
    assert arrived == value

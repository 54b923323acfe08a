"""Frames and records: what crosses Redis comes back as it was, and every version can count."""

from __future__ import annotations

import contextlib
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncq import codec
from asyncq.backoff import MAX_ATTEMPTS
from asyncq.codec import Body, Overrides, Record

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def body(**changes: object) -> Body:
    fields = {"task": "add", "args": msgspec.Raw(codec.encode([1])), "enqueued_ms": 5, **changes}
    return Body(**fields)  # type: ignore[arg-type]


@given(VALUES)
def test_values_come_back_as_they_were(value: object) -> None:
    assert codec.decode_any(codec.encode(value)) == value


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(VALUES, max_size=3),
    st.integers(0, 2**53),
    st.integers(0, 2**53),
)
def test_a_frame_comes_back_as_it_was(task: str, args: list[object], enqueued_ms: int, expires_ms: int) -> None:
    overrides = Overrides(timeout=1.5, unique="k", tags=("x", "y"))
    raw = codec.encode(args)
    frame = codec.frame(Body(task, msgspec.Raw(raw), enqueued_ms, expires_ms, overrides))
    assert codec.frame_head(frame) == (codec.VERSION, 1, 0)
    back = codec.decode_body(frame)
    assert (back.task, bytes(back.args), back.enqueued_ms, back.expires_ms, back.overrides) == (
        task, raw, enqueued_ms, expires_ms, overrides,
    )  # fmt: skip


@given(st.integers(0, MAX_ATTEMPTS), st.integers(0, 255), st.binary(min_size=4))
def test_counters_change_and_nothing_else_whatever_the_version(attempt: int, deferrals: int, frame: bytes) -> None:
    changed = codec.with_counts(frame, attempt, deferrals)
    assert codec.frame_head(changed) == (frame[0], attempt, deferrals)
    assert changed[4:] == frame[4:]


def test_deferrals_do_not_overflow_their_byte() -> None:
    assert codec.frame_head(codec.with_counts(codec.FRESH, 1, 1000)) == (codec.VERSION, 1, 255)


@given(st.binary(max_size=3))
def test_bytes_too_short_for_a_frame_have_version_none(frame: bytes) -> None:
    assert codec.frame_head(frame) == (0, 1, 0)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_body_raise_a_decode_error_and_nothing_else(junk: bytes) -> None:
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        codec.decode_body(codec.FRESH + junk)


def test_a_later_version_may_add_fields_that_we_skip() -> None:
    longer = codec.FRESH + codec.encode(["add", [1], 5, 0, None, "a field of tomorrow"])
    assert codec.decode_body(longer).task == "add"


def test_an_earlier_version_may_have_had_fewer_fields() -> None:
    assert codec.decode_body(codec.FRESH + codec.encode(["add", [1], 5])).overrides is None


@pytest.mark.parametrize("name", ["timeout", "soft_timeout", "result_ttl"])
@pytest.mark.parametrize("seconds", [math.inf, -math.inf, math.nan, -1.0, 1e300])
def test_a_time_that_cannot_be_makes_a_body_that_cannot_be_read(name: str, seconds: float) -> None:
    """A worker that rounded it would fall over, and Redis would refuse it in the middle of a script."""
    with pytest.raises(msgspec.ValidationError):
        codec.decode_body(codec.FRESH + codec.encode(["add", [1], 5, 0, {name: seconds}]))


def test_a_plain_job_pays_for_nothing_it_does_not_use() -> None:
    assert len(codec.frame(body())) == len(codec.FRESH) + len(codec.encode(["add", [1], 5, 0, None]))


def test_a_record_comes_back_as_it_was() -> None:
    record = Record("succeeded", "add", msgspec.Raw(codec.encode({"a": [1]})), "", 2, 3, 4, 5, "w1")
    back = codec.decode_record(codec.encode(record))
    assert (back.state, codec.decode_any(back.value), back.attempts, back.worker) == ("succeeded", {"a": [1]}, 2, "w1")


@pytest.mark.parametrize("attempt", [-1, MAX_ATTEMPTS + 1])
def test_an_attempt_that_does_not_fit_is_an_error_and_no_other_number(attempt: int) -> None:
    with pytest.raises(OverflowError):
        codec.with_counts(codec.FRESH, attempt, 0)

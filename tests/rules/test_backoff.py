"""Retry: the table of waits."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncq.backoff import MAX_ATTEMPTS, Retry
from asyncq.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "waits_s"),
    [
        ({}, [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]),
        ({"base": 1, "factor": 3, "max": 30}, [1, 3, 9, 27, 30, 30]),
        ({"base": 0}, [0, 0, 0]),
        ({"factor": 1}, [5, 5, 5]),
        ({"base": 1, "factor": 100_000, "max": 200_000}, [1, 100_000, 200_000]),
        ({"backoff": "linear", "base": 2, "max": 7}, [2, 4, 6, 7, 7]),
        ({"backoff": "constant", "base": 2.5}, [2.5, 2.5, 2.5]),
        ({"backoff": "constant", "base": 20, "max": 10}, [10, 10]),
        ({"delays": (1, 10, 0.5)}, [1, 10, 0.5, 0.5, 0.5]),
        ({"delays": [3], "jitter": True}, [3, 3]),
    ],
)
def test_waits(settings: dict[str, Any], waits_s: list[float]) -> None:
    retry = Retry(**{"jitter": False, **settings})
    assert [retry.delay_ms(failures, 0.0) for failures in range(1, len(waits_s) + 1)] == [s * 1000 for s in waits_s]


def test_jitter_takes_away_up_to_half() -> None:
    retry = Retry(base=10)
    assert [retry.delay_ms(1, jitter) for jitter in (0.0, 0.5, 0.999999)] == [5000, 7500, 10000]


def test_given_delays_are_kept_exactly() -> None:
    assert Retry(delays=(1.5,)).delay_ms(1, 0.0) == 1500


@given(
    st.sampled_from(["exponential", "linear", "constant"]),
    st.floats(0, 1e6),
    st.floats(1, 1e12),
    st.floats(0, 1e6),
    st.integers(0, MAX_ATTEMPTS),
    st.floats(0, 1, exclude_max=True),
)
def test_a_wait_is_never_negative_nor_above_the_maximum(
    backoff: Any, base: float, factor: float, most: float, failures: int, jitter: float
) -> None:
    wait = Retry(backoff=backoff, base=base, factor=factor, max=most).delay_ms(failures, jitter)
    assert 0 <= wait <= round(most * 1000)


@given(st.floats(0.001, 10), st.floats(1.001, 10), st.integers(1, MAX_ATTEMPTS - 1))
def test_waits_never_get_shorter_and_reach_the_maximum(base: float, factor: float, failures: int) -> None:
    retry = Retry(base=base, factor=factor, max=100, jitter=False)
    assert retry.delay_ms(failures, 0) <= retry.delay_ms(failures + 1, 0)
    assert retry.delay_ms(MAX_ATTEMPTS, 0) == 100_000


@pytest.mark.parametrize(
    ("settings", "limit"),
    [({}, 3), ({"attempts": 1}, 1), ({"delays": (1, 2)}, 3), ({"delays": (1, 2), "attempts": 9}, 9)],
)
def test_runs_in_all(settings: dict[str, Any], limit: int) -> None:
    assert Retry(**settings).limit == limit


@pytest.mark.parametrize(
    "settings",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"attempts": MAX_ATTEMPTS + 1},
        {"backoff": "quadratic"},
        {"base": -1},
        {"base": math.inf},
        {"base": math.nan},
        {"max": -1},
        {"max": math.inf},
        {"factor": 0.5},
        {"factor": math.nan},
        {"delays": (1, -1)},
        {"delays": (math.inf,)},
        {"on": "ValueError"},
        {"on": (ValueError, "KeyError")},
        {"give_up_on": int},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Retry"):
        Retry(**settings)


@pytest.mark.parametrize(
    ("retry", "error", "again"),
    [
        (Retry(), ValueError(), True),
        (Retry(on=ValueError), ValueError(), True),  # type: ignore[arg-type]
        (Retry(on=(ValueError,)), UnicodeError(), True),
        (Retry(on=(ValueError,)), KeyError(), False),
        (Retry(give_up_on=(KeyError,)), KeyError(), False),
        (Retry(give_up_on=(LookupError,)), KeyError(), False),
        (Retry(on=(Exception,), give_up_on=(KeyError,)), KeyError(), False),
        (Retry(on=(KeyError,), give_up_on=(LookupError,)), KeyError(), False),
    ],
)
def test_which_errors_are_tried_again(retry: Retry, error: Exception, again: bool) -> None:
    assert retry.covers(error) is again

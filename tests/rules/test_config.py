"""Settings are checked when built; a message names what is wrong."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest

from asyncq import Queue
from asyncq.config import ENVIRONMENT, QueueSettings, WorkerSettings, from_environment
from asyncq.errors import ConfigError, RetryLater
from asyncq.options import CallOptions, TaskOptions


@pytest.mark.parametrize("name", ["a", "A_1", "mail:out", "a/b", "a-b", "_", "x" * 64])
def test_queue_names(name: str) -> None:
    assert QueueSettings(name=name).name == name


@pytest.mark.parametrize("name", ["", " ", "a b", "a.b", "{a}", "a{b", "-a", ":a", "a\n", "é", "a*", "x" * 65])
def test_queue_names_that_cannot_be_used(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        QueueSettings(name=name)


@pytest.mark.parametrize("lane", ["a", "A.b-c_1", "0", "x" * 64])
def test_lane_names(lane: str) -> None:
    assert QueueSettings(name="q", lanes=(lane,)).default_lane == lane


@pytest.mark.parametrize("lane", ["", "dead", "scheduled", "*", "a b", "a:b", "}", "-a", "a\n", "x" * 65, "é"])
def test_lane_names_that_cannot_be_used(lane: str) -> None:
    with pytest.raises(ConfigError, match="lane name"):
        QueueSettings(name="q", lanes=(lane,))


@pytest.mark.parametrize(
    ("lanes", "given", "default"),
    [
        (("high", "default", "low"), "", "default"),
        (("high", "low"), "", "high"),
        (("high", "low"), "low", "low"),
    ],
)
def test_the_default_lane(lanes: tuple[str, ...], given: str, default: str) -> None:
    settings = QueueSettings(name="q", lanes=lanes, default_lane=given)
    assert settings.default_lane == default
    assert settings.lane_number(default) == lanes.index(default)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lanes": ()}, "at least one lane"),
        ({"lanes": ("a", "a")}, "named twice"),
        ({"default_lane": "other"}, "has no lane 'other'; it has default"),
        ({"shares": {"other": 0.1}}, "has no lane 'other'"),
        ({"shares": {"default": -0.1}}, "from 0 to 1"),
        ({"shares": {"default": 1.1}}, "from 0 to 1"),
        ({"shares": {"default": math.nan}}, "from 0 to 1"),
        ({"lanes": ("a", "b"), "shares": {"a": 0.6, "b": 0.6}}, "together"),
        ({"partitions": 0}, "partitions"),
        ({"partitions": 1025}, "partitions"),
        ({"visibility_timeout": 0.05}, "visibility_timeout"),
        ({"visibility_timeout": math.inf}, "visibility_timeout"),
        ({"visibility_timeout": math.nan}, "visibility_timeout"),
        ({"max_crashes": 0}, "max_crashes"),
        ({"max_payload": 0}, "max_payload"),
        ({"result_ttl": -1}, "result_ttl"),
        ({"result_ttl": math.inf}, "result_ttl"),
        ({"enqueue_timeout": 0}, "enqueue_timeout"),
        ({"enqueue_timeout": 601}, "enqueue_timeout"),
        ({"enqueue_timeout": math.nan}, "enqueue_timeout"),
    ],
)
def test_queue_settings_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        QueueSettings(**{"name": "q", **settings})
    with pytest.raises(ConfigError, match=says):
        Queue("q", **settings)


def test_a_queue_names_settings_it_does_not_know_and_those_it_knows() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting colour; there are .*partitions"):
        Queue("q", colour="red")
    with pytest.raises(ConfigError, match="a tuple of names"):
        Queue("q", lanes="default")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"grace": -1}, "grace"),
        ({"grace": math.inf}, "grace"),
        ({"max_jobs": -1}, "max_jobs"),
        ({"max_memory": -1}, "max_memory"),
        ({"heartbeat": 0}, "heartbeat"),
        ({"heartbeat": math.inf}, "heartbeat"),
        ({"blocked_after": 0}, "blocked_after"),
        ({"blocked_after": math.nan}, "blocked_after"),
        ({"name": "a b"}, "must not contain spaces"),
    ],
)
def test_worker_settings_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        WorkerSettings(**settings)


@pytest.mark.parametrize(
    ("struct", "settings"),
    [
        (QueueSettings, {"name": 5}),
        (QueueSettings, {"name": "q", "lanes": (1,)}),
        (QueueSettings, {"name": "q", "partitions": "2"}),
        (QueueSettings, {"name": "q", "max_payload": 1.5}),
        (WorkerSettings, {"concurrency": 2.5}),
        (WorkerSettings, {"concurrency": "5"}),
        (WorkerSettings, {"lanes": "high"}),
        (TaskOptions, {"retry": "3"}),
        (TaskOptions, {"timeout": "60"}),
        (CallOptions, {"delay": "60"}),
        (CallOptions, {"job_id": 7}),
        (CallOptions, {"tags": (1,)}),
    ],
)
def test_a_value_of_another_type_is_named(struct: type[Any], settings: dict[str, Any]) -> None:
    name, value = list(settings.items())[-1]
    with pytest.raises(ConfigError, match=re.escape(f"{name}={value!r} cannot be used: Expected")):
        struct(**settings)


def test_what_is_as_good_as_the_right_type_becomes_it() -> None:
    lanes: Any = ["a", "b"]
    settings = WorkerSettings(lanes=lanes, grace=5)
    assert settings.lanes == ("a", "b")
    assert isinstance(settings.grace, float)


def test_what_is_given_comes_before_the_environment() -> None:
    environ = {"ASYNCQ_CONCURRENCY": "7", "ASYNCQ_GRACE": "1.5", "ASYNCQ_BURST": "true", "ASYNCQ_LANES": "a,b"}
    settings = from_environment(environ, concurrency=9, grace=None)
    assert (settings.concurrency, settings.grace, settings.burst, settings.lanes) == (9, 1.5, True, ("a", "b"))


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert from_environment(dict.fromkeys(ENVIRONMENT, "")) == WorkerSettings()


@pytest.mark.parametrize(("variable", "setting"), ENVIRONMENT.items())
def test_every_variable_is_a_setting(variable: str, setting: str) -> None:
    assert setting in WorkerSettings.__struct_fields__
    assert variable == "ASYNCQ_" + setting.upper()


@pytest.mark.parametrize(
    ("variable", "text"),
    [("ASYNCQ_CONCURRENCY", "many"), ("ASYNCQ_CONCURRENCY", "1.5"), ("ASYNCQ_GRACE", "x"), ("ASYNCQ_BURST", "maybe")],
)
def test_a_variable_that_cannot_be_used_is_named(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable}='{text}' cannot be used"):
        from_environment({variable: text})


@pytest.mark.parametrize("name", ["delay", "expires", "result_ttl", "timeout", "soft_timeout", "unique_ttl"])
@pytest.mark.parametrize("value", [-1, math.inf, -math.inf, math.nan, 1e300])
def test_a_call_takes_no_time_that_cannot_be(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=name):
        CallOptions(**options)


@pytest.mark.parametrize("name", ["timeout", "soft_timeout", "unique_ttl"])
def test_no_time_at_all_is_too_short(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ConfigError, match=name):
        CallOptions(**options)


def test_tags_are_words() -> None:
    with pytest.raises(ConfigError, match="tags='one' cannot be used"):
        CallOptions(tags="one")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": math.inf},
        {"timeout": math.nan},
        {"soft_timeout": -1},
        {"soft_timeout": 5, "timeout": 5},
        {"result_ttl": -1},
        {"result_ttl": math.inf},
        {"result_ttl": 1e300},
    ],
)
def test_a_task_takes_no_time_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TaskOptions(**options)


@pytest.mark.parametrize("delay", [math.inf, -math.inf, math.nan, 1e300])
def test_later_is_not_never(delay: float) -> None:
    with pytest.raises(ConfigError, match="RetryLater"):
        RetryLater(delay)


def test_a_signal_survives_a_copy() -> None:
    twin = copy.copy(RetryLater(2.5, "busy"))
    assert (twin.delay, twin.reason, str(twin)) == (2.5, "busy", "busy")

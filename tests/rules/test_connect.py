"""Which server, why, and never its password."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import exceptions

from asyncq.connect import address, client, embedded_directory, redacted, translate
from asyncq.errors import ConfigError, ServerRefused, ServerUnavailable

EVERYTHING = {
    "ASYNCQ_URL": "redis://asyncq",
    "REDIS_URL": "redis://redis",
    "REDIS_HOST": "host",
    "REDIS_PORT": "7000",
    "REDIS_DB": "3",
    "REDIS_PASSWORD": "p@ss/word",
}


@pytest.mark.parametrize(
    ("given", "without", "url", "why"),
    [
        ("unix:///tmp/s", [], "unix:///tmp/s", "given"),
        ("embedded://", [], "embedded://", "given"),
        (None, [], "redis://asyncq", "ASYNCQ_URL"),
        ("", [], "redis://asyncq", "ASYNCQ_URL"),
        (None, ["ASYNCQ_URL"], "redis://redis", "REDIS_URL"),
        (None, ["ASYNCQ_URL", "REDIS_URL"], "redis://:p%40ss%2Fword@host:7000/3", "REDIS_HOST"),
        (None, ["ASYNCQ_URL", "REDIS_URL", "REDIS_PASSWORD"], "redis://host:7000/3", "REDIS_HOST"),
        (None, ["ASYNCQ_URL", "REDIS_URL", "REDIS_PASSWORD", "REDIS_PORT"], "redis://host:6379/3", "REDIS_HOST"),
        (None, ["ASYNCQ_URL", "REDIS_URL", "REDIS_PASSWORD", "REDIS_DB"], "redis://host:7000/0", "REDIS_HOST"),
        (None, ["ASYNCQ_URL", "REDIS_URL", "REDIS_HOST"], "embedded://", "no server is configured"),
    ],
)
def test_the_order_in_which_places_are_asked(given: str | None, without: list[str], url: str, why: str) -> None:
    environ = {name: value for name, value in EVERYTHING.items() if name not in without}
    found = address(given, environ)
    assert (found.url, found.why) == (url, why)


def test_a_variable_that_is_empty_is_as_good_as_none() -> None:
    assert address(None, {"ASYNCQ_URL": "", "REDIS_URL": "", "REDIS_HOST": ""}).url == "embedded://"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:1/0", "redis://host:1/0"),
        ("redis://:secret@host", "redis://:***@host"),
        ("redis://user:secret@host:1/0", "redis://user:***@host:1/0"),
        ("redis://user@host", "redis://user@host"),
        ("redis://u:sec@ret@host", "redis://u:***@host"),
        ("redis://u:sec:ret@host", "redis://u:***@host"),
        ("redis://u:sec/ret@host", "redis://u:***@host"),
        ("unix:///tmp/s?db=0&password=secret", "unix:///tmp/s?db=0&password=***"),
        ("redis://host?password=secret&db=1", "redis://host?password=***&db=1"),
        ("rediss://host?ssl_password=secret", "rediss://host?ssl_password=***"),
        (":secret@host", ":***@host"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown
    for what in (str, repr):
        try:
            text = what(str(address(url, {})))
        except ConfigError as error:
            text = what(error)
        assert "secret" not in text
        assert "sec" not in text.replace("seconds", "")
    told = str(translate(ConnectionError("no"), url))
    assert "sec" not in told


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://host", "begins with one of redis://"),
        ("localhost:6379", "begins with one of redis://"),
        ("redis://", "names no host"),
        ("redis://:6379", "names no host"),
        ("redis://host:port", "is not a URL"),
        ("redis://host:99999", "is not a URL"),
        ("redis://[::1", "is not a URL"),
        ("redis://host/zero", "database is not a number"),
        ("redis://host/-1", "database is not a number"),
    ],
)
def test_urls_that_cannot_be_used(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        address(url, {})
    with pytest.raises(ConfigError, match=r"\(REDIS_URL\)"):
        address(None, {"REDIS_URL": url})


@pytest.mark.parametrize("url", ["redis://h", "redis://[::1]:1/2", "rediss://h:1", "unix:///s?db=1", "embedded:///d"])
def test_urls_that_can_be_used(url: str) -> None:
    assert address(url, {}).url == url


def test_options_in_a_url_that_redis_py_does_not_take() -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        client("redis://host?db=many")


@pytest.mark.parametrize(
    ("url", "directory"),
    [
        ("embedded://", ".asyncq"),
        ("embedded:///var/lib/app", "/var/lib/app"),
        ("embedded://data/app", "data/app"),
    ],
)
def test_where_an_embedded_server_lives(url: str, directory: str) -> None:
    assert embedded_directory(url) == Path(directory)


def test_a_client_sends_each_command_once_and_waits_as_long_as_it_takes() -> None:
    options = client("redis://host").connection_pool.connection_kwargs
    assert options["retry"] is None
    assert options["socket_timeout"] is None
    assert options["protocol"] == 2
    assert options["decode_responses"] is False


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (exceptions.ConnectionError("gone"), ServerUnavailable, "does not answer: gone"),
        (exceptions.TimeoutError("slow"), ServerUnavailable, "does not answer: slow"),
        (TimeoutError(), ServerUnavailable, "does not answer: TimeoutError"),
        (OSError("broken pipe"), ServerUnavailable, "broken pipe"),
        (exceptions.BusyLoadingError("loading"), ServerUnavailable, "loading"),
        (exceptions.ReadOnlyError("ro"), ServerUnavailable, "replica"),
        (exceptions.AuthenticationError("bad"), ServerRefused, "password"),
        (exceptions.AuthorizationError("bad"), ServerRefused, "password"),
        (exceptions.NoPermissionError("time"), ServerRefused, "permission"),
        (exceptions.OutOfMemoryError("oom"), ServerRefused, "maxmemory"),
        (exceptions.ResponseError("WRONGTYPE x"), ServerRefused, "another queue name"),
        (exceptions.ResponseError("ERR x"), ServerRefused, "refuses: ERR x"),
    ],
)
def test_every_failure_says_what_to_do(error: Exception, kind: type[Exception], says: str) -> None:
    told = translate(error, "redis://u:secret@host")
    assert type(told) is kind
    assert says in str(told)
    assert "redis://u:***@host" in str(told)

"""A script whose header does not match its body is refused; ours all match."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import asyncq
from asyncq import scripts
from asyncq.keys import GROUP, PATTERNS, Keys
from asyncq.scripts import HeaderError
from asyncq.store import Store

LUA = Path(asyncq.__file__).parent / "lua"

GOOD = """\
--[[ good.lua -- do a thing.

KEYS   1 index       aq:{queue}:index
       2.. lane      aq:{queue}:lane:<name>, highest first

ARGV   1 id    2 delay_ms
       3.. two for each: id, bytes

RETURNS     nothing
INVARIANTS  none
]]
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
for i = 2, #KEYS do redis.call('XLEN', KEYS[i]) end
for i = 3, #ARGV do redis.call('ECHO', ARGV[i]) end
"""


def test_a_script_that_matches_its_header() -> None:
    script = scripts.parse("good", GOOD)
    assert script == ("good", GOOD, hashlib.sha1(GOOD.encode()).hexdigest(), "do a thing.")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("good.lua", "other.lua", "does not begin with a header"),
        ("--[[", "-- a comment first\n--[[", "does not begin with a header"),
        ("INVARIANTS", "PROMISES", "does not begin with a header"),
        ("RETURNS", "GIVES", "does not begin with a header"),
        ("]]\n", "]]", "does not begin with a header"),
        ("aq:{queue}:index", "aq:{queue}:idx", "key 'index' is not"),
        ("1 index ", "1 list ", "key 'list' is not"),
        ("       2.. lane ", "       and lanes ", "cannot read the KEYS line"),
        ("KEYS[1], ARGV[1]", "KEYS[1], ARGV[3], KEYS[3]", r"uses KEYS \[3\]"),
        ("HSET', KEYS[1]", "HSET', 'x'", r"names KEYS \[1\]"),
        ("ARGV[1], ARGV[2]", "ARGV[1], ARGV[9]", r"uses ARGV \[9\]"),
        ("ARGV[1], ARGV[2]", "ARGV[1], 0", r"names ARGV \[2\]"),
        ("2.. lane", "2 lane", "header does not say so|names KEYS"),
        ("for i = 2, #KEYS do redis.call('XLEN', KEYS[i]) end\n", "", "and its header says so"),
        ("       3.. two for each: id, bytes\n", "", "header does not say so"),
        ("for i = 3, #ARGV do redis.call('ECHO', ARGV[i]) end\n", "", "and its header says so"),
    ],
)
def test_a_script_that_does_not_match_its_header_is_refused(old: str, new: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(HeaderError, match=says):
        scripts.parse("good", GOOD.replace(old, new, 1))


def test_every_file_is_a_script_that_is_known_and_matches() -> None:
    assert {path.stem for path in LUA.glob("*.lua")} == set(scripts.NAMES)
    for name in scripts.NAMES:
        script = scripts.load(name)
        assert script.source == (LUA / f"{name}.lua").read_text()
        assert script is scripts.load(name)


def test_every_script_is_a_method_of_the_store() -> None:
    assert {name for name in scripts.NAMES if not hasattr(Store, name)} == {"look"}, (
        "look is the monitor's: it writes nothing"
    )


@pytest.mark.parametrize("name", scripts.NAMES)
def test_scripts_keep_to_what_every_server_has(name: str) -> None:
    source = scripts.load(name).source
    assert not source.startswith("#!"), "with a shebang it would not run when the server is out of memory"
    for word in ("MAXLEN", "XTRIM", "WAIT", "BLOCK", "KEYS *", "cjson", "cmsgpack", "math.random"):
        assert word not in source.partition("]]\n")[2]


@pytest.mark.parametrize("name", scripts.NAMES)
def test_a_group_is_only_ever_made_at_zero(name: str) -> None:
    source = scripts.load(name).source
    assert source.count("'CREATE'") == source.count(f"'CREATE', lane, '{GROUP}', '0'")


def test_patterns_are_what_keys_makes() -> None:
    keys = Keys("q")
    made = {
        "lane": keys.lane("<name>"),
        "bell": keys.bell("<lane>"),
        "result": keys.result("<id>"),
        "producer": keys.producer("<id>"),
        "unique": keys.unique("<key>"),
        "stats": keys.stats(0).removesuffix("0") + "<minute>",
    }
    for kind, pattern in PATTERNS.items():
        assert (made.get(kind) or getattr(keys, kind)) == pattern.replace("{queue}", "{q}")


def test_partitions_have_hash_tags_of_their_own() -> None:
    assert Keys("q").index == "aq:{q}:index"
    assert Keys("q", 3).index == "aq:{q.3}:index"
    assert Keys("q").stats(120_001) == "aq:{q}:stats:2"

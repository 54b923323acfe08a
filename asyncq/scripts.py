"""Loads the Lua scripts and holds each to its header.

A header is the script's contract (see any file in `lua/`): what every KEYS and ARGV position is, what
comes back, and what stays true. `parse` refuses a script whose header names positions that the body does
not use, or whose body uses positions that the header does not name.
"""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

from asyncq.keys import PATTERNS

__all__ = ["NAMES", "HeaderError", "Script", "load", "parse"]

NAMES = (
    "enqueue",
    "claim",
    "renew",
    "finish",
    "reclaim",
    "release",
    "promote",
    "cancel",
    "revive",
    "watch",
    "report",
    "begin_trial",
    "look",
    "purge",
    "empty",
    "retire",
)

_HEADER = re.compile(
    r"\A--\[\[ (?P<name>\w+)\.lua -- (?P<purpose>[^\n]+)\n"
    r"(?P<about>.*?)\nKEYS(?P<keys>.*?)\nARGV(?P<args>.*?)"
    r"\nRETURNS(?P<returns>.*?)\nINVARIANTS(?P<invariants>.*?)\n\]\]\n",
    re.DOTALL,
)
_KEY = re.compile(r"^ +(\d+)(\.\.)? (\w+) +(aq:\S+?)(?:,.*)?$")
_POSITION = re.compile(r"(?:^ {3,}|; | {4,})(\d+)(\.\.)? ", re.MULTILINE)
_USED = {name: re.compile(rf"\b{name}\[(\d+)\]") for name in ("KEYS", "ARGV")}
_COMPUTED = {name: re.compile(rf"#{name}|\b{name}\[[^\]\d]|unpack\({name}") for name in ("KEYS", "ARGV")}


class HeaderError(Exception):
    """A script and its header disagree. Seen only by whoever edits a script."""


class Script(NamedTuple):
    """A script, its SHA-1 as EVALSHA wants it, and the first sentence of its header."""

    name: str
    source: str
    sha: str
    purpose: str


def parse(name: str, source: str) -> Script:
    """The script in `source`, its header checked against its body.

    Raises:
        HeaderError: they disagree; the message says where.
    """
    header = _HEADER.match(source)
    if header is None or header["name"] != name:
        raise HeaderError(f"{name}.lua does not begin with a header: name, KEYS, ARGV, RETURNS, INVARIANTS")
    body = source[header.end() :]
    keys = _declared_keys(name, header["keys"])
    _compare(name, "KEYS", keys, body)
    _compare(name, "ARGV", _POSITION.findall(header["args"]), body)
    return Script(name, source, sha1(source.encode(), usedforsecurity=False).hexdigest(), header["purpose"])


def _declared_keys(name: str, text: str) -> list[tuple[str, str]]:
    positions = []
    for line in text.strip("\n").split("\n"):
        key = _KEY.match(line)
        if key is None:
            raise HeaderError(f"{name}.lua: cannot read the KEYS line {line!r}")
        position, more, kind, pattern = key.groups()
        if PATTERNS.get(kind) != pattern:
            raise HeaderError(f"{name}.lua: key {kind!r} is not {pattern} in keys.py")
        positions.append((position, more or ""))
    return positions


def _compare(name: str, array: str, declared: list[tuple[str, str]], body: str) -> None:
    fixed = {int(position) for position, more in declared if not more}
    open_ended = [int(position) for position, more in declared if more]
    used = {int(position) for position in _USED[array].findall(body)}
    computed = bool(_COMPUTED[array].search(body))
    if used - fixed - set(open_ended):
        raise HeaderError(f"{name}.lua uses {array} {sorted(used - fixed)} that its header does not name")
    if fixed - used:
        raise HeaderError(f"{name}.lua names {array} {sorted(fixed - used)} that its body does not use")
    if computed != bool(open_ended):
        says = "says so" if open_ended else "does not say so"
        uses = "does" if computed else "does not"
        raise HeaderError(f"{name}.lua {uses} take a varying number of {array}, and its header {says}")


@cache
def load(name: str) -> Script:
    """One of `NAMES`, read once and checked.

    Raises:
        HeaderError: the file and its header disagree.
    """
    return parse(name, (files("asyncq") / "lua" / f"{name}.lua").read_text(encoding="utf-8"))

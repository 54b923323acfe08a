"""Is this server fit to keep jobs? Checks that say what is wrong and what to do about it."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Literal

import msgspec

from asyncq.clock import monotonic_s
from asyncq.errors import AsyncqError, ServerRefused
from asyncq.keys import Keys
from asyncq.link import Link
from asyncq.overview import Catalogued, catalogue, name_and_version, server_says

__all__ = ["Check", "examine", "refusal_to_write"]

Level = Literal["ok", "warn", "fail"]

OLDEST = (7, 0)
PROBE = "aq:probe"
"""Written and gone again within a second, to see whether writing works."""

SLOW_MS, VERY_SLOW_MS = 5.0, 100.0
SKEW_S, WILD_SKEW_S = 1.0, 30.0
FULL, VERY_FULL = 0.75, 0.9


class Check(msgspec.Struct, frozen=True):
    """One finding. `advice` is empty when all is well."""

    name: str
    level: Level
    text: str
    advice: str = ""


async def examine(link: Link) -> list[Check]:
    """Everything we know to look at.

    Raises:
        ServerUnavailable, ServerRefused: not even INFO is answered.
    """
    says = await server_says(link)
    settings = await _settings(link, says)
    return [
        _version(says),
        _role(says),
        await _writable(link),
        await _scripts(link),
        _eviction(settings),
        _persistence(says, settings),
        _memory(says),
        _connections(says),
        await _latency(link),
        await _clock(link),
        *[check async for check in _keys(link)],
    ]


async def refusal_to_write(link: Link) -> str:
    """Why the server takes no jobs; empty when it does."""
    try:
        await link.command("SET", PROBE, "1", "PX", 1000)
    except AsyncqError as error:
        return str(error)
    return ""


async def _settings(link: Link, says: Mapping[str, str]) -> dict[str, str]:
    """What CONFIG GET tells, or where that is forbidden as much of it as INFO does."""
    found = {
        "maxmemory-policy": says.get("maxmemory_policy", ""),
        "appendonly": {"1": "yes", "0": "no"}.get(says.get("aof_enabled", ""), ""),
    }
    for name in ("maxmemory-policy", "appendonly", "appendfsync", "save"):
        try:
            reply = await link.command("CONFIG", "GET", name)
        except ServerRefused:
            break  # Managed servers forbid it.
        if len(reply) == 2:
            found[name] = reply[1].decode(errors="replace")
    return found


def _version(says: Mapping[str, str]) -> Check:
    which = name_and_version(says)
    text = f"{which['name']} {which['version']}"
    compatible = says.get("redis_version", "0.0").split(".")
    if tuple(int(part) for part in compatible[:2]) < OLDEST:
        return Check("version", "fail", text, "asyncq needs Redis 7.0 or newer, or Valkey: upgrade the server")
    return Check("version", "ok", text)


def _role(says: Mapping[str, str]) -> Check:
    role = says.get("role", "?")
    if role != "master":
        return Check("role", "fail", f"it is a {role}", "give asyncq the address of the primary: replicas take no jobs")
    return Check("role", "ok", "primary")


async def _writable(link: Link) -> Check:
    if refusal := await refusal_to_write(link):
        return Check("writing", "fail", refusal, "until this works nothing can be enqueued")
    return Check("writing", "ok", "writes are accepted")


async def _scripts(link: Link) -> Check:
    try:
        await link.command("EVAL", "return 1", 0)
    except ServerRefused as error:
        return Check(
            "scripts", "fail", str(error), "allow the user @scripting, for example: ACL SETUSER ... +@scripting"
        )
    return Check("scripts", "ok", "Lua scripts may run")


def _eviction(settings: Mapping[str, str]) -> Check:
    policy = settings["maxmemory-policy"]
    advice = "CONFIG SET maxmemory-policy noeviction, and in the server's configuration"
    if policy.startswith("allkeys"):
        return Check("eviction", "fail", f"{policy}: the server may throw away queues when memory is short", advice)
    if policy.startswith("volatile"):
        return Check("eviction", "warn", f"{policy}: results and uniqueness keys may vanish early", advice)
    if not policy:
        return Check("eviction", "warn", "the server does not tell its maxmemory-policy", "see that it is noeviction")
    return Check("eviction", "ok", policy)


def _persistence(says: Mapping[str, str], settings: Mapping[str, str]) -> Check:
    on, fsync = settings["appendonly"], settings.get("appendfsync", "")
    advice = "CONFIG SET appendonly yes and appendfsync everysec, and in the server's configuration"
    for field, what in (("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")):
        if says.get(field, "ok") != "ok":
            text = f"the last write of the {what} failed"
            return Check("persistence", "fail", text, "look at the server's log and its disk")
    if on == "yes" and fsync == "no":
        return Check(
            "persistence", "warn", "append-only file, never fsynced: a crash of the machine loses jobs", advice
        )
    if on == "yes":
        return Check("persistence", "ok", f"append-only file, fsync {fsync or 'unknown'}")
    if settings.get("save"):
        return Check("persistence", "warn", "snapshots only: a crash loses the jobs since the last one", advice)
    if on == "no":
        return Check("persistence", "warn", "none: a restart of the server loses every job", advice)
    return Check("persistence", "warn", "the server does not tell", "see that it keeps an append-only file")


def _memory(says: Mapping[str, str]) -> Check:
    used, limit = int(says.get("used_memory", 0)), int(says.get("maxmemory", 0))
    if not limit:
        system = int(says.get("total_system_memory", 0))
        of = f" of the machine's {_mib(system)}" if system else ""
        return Check("memory", "ok", f"{_mib(used)}{of} used, no maxmemory set")
    text = f"{_mib(used)} of {_mib(limit)} used ({used / limit:.0%})"
    if used > FULL * limit:
        level: Level = "fail" if used > VERY_FULL * limit else "warn"
        return Check("memory", level, text, "raise maxmemory, drain the queues or keep results for a shorter time")
    return Check("memory", "ok", text)


def _connections(says: Mapping[str, str]) -> Check:
    used, limit = int(says.get("connected_clients", 0)), int(says.get("maxclients", 0))
    text = f"{used} connections of {limit or '?'}"
    if limit and used > FULL * limit:
        return Check("connections", "warn", text, "raise maxclients, or find who opens so many")
    return Check("connections", "ok", text)


async def _latency(link: Link) -> Check:
    times_ms = []
    for _ in range(20):
        began = monotonic_s()
        await link.command("PING")
        times_ms.append((monotonic_s() - began) * 1000)
    median = statistics.median(times_ms)
    text = f"{median:.2f} ms to the server and back (median of {len(times_ms)})"
    if median > SLOW_MS:
        level: Level = "fail" if median > VERY_SLOW_MS else "warn"
        return Check("latency", level, text, "bring workers nearer to the server, and look for slow commands on it")
    return Check("latency", "ok", text)


async def _clock(link: Link) -> Check:
    before = time.time()
    seconds, micros = await link.command("TIME")
    ours = (before + time.time()) / 2
    skew = abs(int(seconds) + int(micros) / 1e6 - ours)
    text = f"{skew * 1000:.0f} ms between the server's clock and ours"
    if skew > SKEW_S:
        level: Level = "fail" if skew > WILD_SKEW_S else "warn"
        return Check("clock", level, text, "run NTP on both machines: `expires` and shown times depend on it")
    return Check("clock", "ok", text)


async def _keys(link: Link) -> AsyncGenerator[Check, None]:
    """Every queue's lasting keys are of our types."""
    advice = "another program uses the same names: choose another queue name or database, or delete the key"
    try:
        queues = await catalogue(link)
    except ServerRefused as error:
        yield Check("keys", "fail", str(error), advice)
        return
    for name, about in queues.items():
        wrong = []
        for key, kind in _kinds(name, about):
            found = (await link.command("TYPE", key)).decode()
            if found not in (kind, "none"):
                wrong.append(f"{key} is a {found}, not a {kind}")
        if wrong:
            yield Check(f"keys of {name}", "fail", "; ".join(wrong), advice)
        else:
            yield Check(f"keys of {name}", "ok", "as they should be")


def _kinds(name: str, about: Catalogued) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for number in range(about.partitions):
        keys = Keys(name, number)
        pairs += [(keys.lane(lane), "stream") for lane in about.lanes]
        pairs += [(keys.index, "hash"), (keys.scheduled, "zset"), (keys.parked, "hash"), (keys.dead, "stream")]
        pairs += [(keys.bell(lane), "list") for lane in about.lanes]
        pairs += [(keys.waiters, "set"), (keys.progress, "hash")]
        pairs += [(keys.cancelled, "set"), (keys.trials, "set"), (keys.workers, "hash"), (keys.paused, "set")]
    return pairs


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"

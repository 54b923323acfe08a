"""Settings: frozen, checked when built, the same from arguments, environment and command line."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from asyncq.clock import LONGEST_S
from asyncq.errors import ConfigError

__all__ = ["ENVIRONMENT", "QueueSettings", "WorkerSettings", "check_types", "from_environment"]

_QUEUE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_:/-]{0,63}")
_LANE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def check_types(settings: msgspec.Struct) -> None:
    """Make every field what its annotation says: msgspec looks at types only when it decodes.

    Raises:
        ConfigError: one cannot be; the message names it.
    """
    for name, kind, default in _fields(type(settings)):
        value = getattr(settings, name)
        if value is default:
            continue
        try:
            msgspec.structs.force_setattr(settings, name, msgspec.convert(value, kind))
        except msgspec.ValidationError as error:
            raise ConfigError(f"{name}={value!r} cannot be used: {error}") from None


@cache
def _fields(settings: type[msgspec.Struct]) -> list[tuple[str, Any, Any]]:
    return [(field.name, field.type, field.default) for field in msgspec.structs.fields(settings)]


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What all producers and workers of a queue should agree on. Times are seconds, sizes bytes.

    name:                letters, digits and _ : / -, at most 64
    lanes:               priorities, highest first
    default_lane:        the lane of tasks that name none; "default" if there is one, else the first
    shares:              lane -> the part of claims it gets even while higher lanes are full, from 0 to 1
    partitions:          over how many hash slots the queue is spread; 1 unless one server is not enough
    visibility_timeout:  a worker that is silent for this long has lost its jobs
    max_crashes:         crashes at which a job is poison and is dead-lettered
    max_payload:         the most bytes encoded arguments or a result may have
    result_ttl:          how long results are kept when the task does not say; 0 keeps none
    enqueue_timeout:     how long a push is repeated while the server does not answer
    """

    name: str
    lanes: tuple[str, ...] = ("default",)
    default_lane: str = ""
    shares: dict[str, float] = {}
    partitions: int = 1
    visibility_timeout: float = 30.0
    max_crashes: int = 3
    max_payload: int = 1 << 20
    result_ttl: float = 600.0
    enqueue_timeout: float = 10.0

    def __post_init__(self) -> None:
        check_types(self)
        _check(
            bool(_QUEUE.fullmatch(self.name)),
            f"queue name {self.name!r} cannot be used: letters, digits and _ : / -, 64 at most",
        )
        _check(bool(self.lanes), f"queue {self.name}: at least one lane is needed")
        for lane in self.lanes:
            _check(
                bool(_LANE.fullmatch(lane)) and lane not in ("dead", "scheduled"),
                f"lane name {lane!r} cannot be used: letters, digits and _ . -, 64 at most, not dead or scheduled",
            )
        _check(len(set(self.lanes)) == len(self.lanes), f"queue {self.name}: a lane is named twice")
        if not self.default_lane:
            default = "default" if "default" in self.lanes else self.lanes[0]
            msgspec.structs.force_setattr(self, "default_lane", default)
        self.lane_number(self.default_lane)
        for lane, share in self.shares.items():
            self.lane_number(lane)
            _check(0 <= share <= 1, f"the share of lane {lane} must be from 0 to 1, not {share}")
        _check(sum(self.shares.values()) <= 1, "the shares of all lanes must not exceed 1 together")
        _check(1 <= self.partitions <= 1024, f"partitions={self.partitions}: must be from 1 to 1024")
        _check(0.1 <= self.visibility_timeout <= LONGEST_S, "visibility_timeout must be from 0.1 seconds to 100 years")
        _check(self.max_crashes >= 1, "max_crashes must be at least 1")
        _check(self.max_payload >= 1, "max_payload must be at least 1 byte")
        _check(
            0 <= self.result_ttl <= LONGEST_S,
            "result_ttl must be from 0 seconds, which keeps no results, to 100 years",
        )
        _check(0 < self.enqueue_timeout <= 600, "enqueue_timeout must be above 0 and at most 600 seconds")

    def lane_number(self, lane: str) -> int:
        """Position of a lane, 0 the highest.

        Raises:
            ConfigError: the queue has no such lane.
        """
        try:
            return self.lanes.index(lane)
        except ValueError:
            raise ConfigError(f"queue {self.name} has no lane {lane!r}; it has {', '.join(self.lanes)}") from None


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one worker process works. Times are seconds.

    concurrency:    jobs running at once
    grace:          how long running jobs may go on after a stop; the rest is handed back
    burst:          stop when nothing is left to do
    max_jobs:       stop after so many jobs; 0 for no limit
    max_memory:     stop when the process has grown to so many MiB; 0 for no limit
    lanes:          serve only these; empty for all of the queue
    name:           shown to people; the process adds what makes it unique
    heartbeat:      how often the worker says that it is alive
    blocked_after:  an event loop that does not turn for this long is reported, with the culprit's stack
    """

    concurrency: int = 100
    grace: float = 25.0
    burst: bool = False
    max_jobs: int = 0
    max_memory: int = 0
    lanes: tuple[str, ...] = ()
    name: str = ""
    heartbeat: float = 5.0
    blocked_after: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        _check(self.concurrency >= 1, f"concurrency={self.concurrency}: must be at least 1")
        _check(0 <= self.grace <= LONGEST_S, "grace must be from 0 seconds to 100 years")
        _check(self.max_jobs >= 0, "max_jobs must not be negative")
        _check(self.max_memory >= 0, "max_memory must not be negative")
        _check(0 < self.heartbeat <= LONGEST_S, "heartbeat must be above 0 and at most 100 years")
        _check(0 < self.blocked_after <= LONGEST_S, "blocked_after must be above 0 and at most 100 years")
        name = self.name or f"{socket.gethostname()}-{os.getpid()}"
        _check(not set(name) & set(" \n\r\t"), f"worker name {name!r} must not contain spaces")
        msgspec.structs.force_setattr(self, "name", name)


ENVIRONMENT = {
    "ASYNCQ_CONCURRENCY": "concurrency",
    "ASYNCQ_GRACE": "grace",
    "ASYNCQ_BURST": "burst",
    "ASYNCQ_MAX_JOBS": "max_jobs",
    "ASYNCQ_MAX_MEMORY": "max_memory",
    "ASYNCQ_LANES": "lanes",
    "ASYNCQ_NAME": "name",
    "ASYNCQ_HEARTBEAT": "heartbeat",
    "ASYNCQ_BLOCKED_AFTER": "blocked_after",
}
"""Variable -> worker setting. Lanes are separated by commas."""


def from_environment(environ: Mapping[str, str] = os.environ, **given: Any) -> WorkerSettings:
    """Worker settings: what is given, else the environment, else the default.

    Raises:
        ConfigError: a value that cannot be used; the message names the setting or the variable.
    """
    values: dict[str, Any] = {}
    for variable, setting in ENVIRONMENT.items():
        if text := environ.get(variable):
            kind = type(getattr(WorkerSettings(), setting))
            try:
                raw: Any = text.split(",") if kind is tuple else text
                values[setting] = msgspec.convert(raw, type=tuple[str, ...] if kind is tuple else kind, strict=False)
            except msgspec.ValidationError as error:
                raise ConfigError(f"{variable}={text!r} cannot be used: {error}") from None
    values.update({name: value for name, value in given.items() if value is not None})
    return WorkerSettings(**values)

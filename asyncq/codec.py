"""What crosses Redis: job frames, results, dead letters, progress. msgpack by msgspec, never pickle.

A job frame is four bytes that every version of asyncq understands, then a body that belongs to its version:

    byte 0       version of the body
    bytes 1-2    attempt about to run, from 1, big-endian
    byte 3       deferrals: how often a worker did not know what to do with it
    bytes 4..    body: msgpack array `Body`

So a worker can count and put off a job whose body it cannot read.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from asyncq.clock import LONGEST_S

__all__ = [
    "FRESH",
    "NIL",
    "VERSION",
    "Body",
    "Overrides",
    "Progress",
    "Record",
    "decode_any",
    "decode_body",
    "decode_progress",
    "decode_record",
    "encode",
    "frame",
    "frame_head",
    "with_counts",
]

VERSION = 1
HEAD = 4
MAX_DEFERRALS = 255


Seconds = Annotated[float, msgspec.Meta(ge=0, le=LONGEST_S)]
"""A time that no worker chokes on, whoever wrote the job."""


class Overrides(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What one enqueue changed of its task's options; seconds. None: as the task says."""

    timeout: Seconds | None = None
    soft_timeout: Seconds | None = None
    result_ttl: Seconds | None = None
    unique: str | None = None
    tags: tuple[str, ...] | None = None


class Body(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One call of a task, as version 1 writes it."""

    task: str
    args: msgspec.Raw
    enqueued_ms: int
    expires_ms: int = 0
    overrides: Overrides | None = None


class Record(msgspec.Struct, array_like=True, gc=False):
    """How a job ended: the bytes in `result:<id>`, also published to whoever awaits it."""

    state: str
    task: str
    value: msgspec.Raw
    error: str
    attempts: int
    enqueued_ms: int
    started_ms: int
    ended_ms: int
    worker: str


class Progress(msgspec.Struct, array_like=True, gc=False):
    """The last word of a running job about how far it is."""

    percent: float
    meta: dict[str, Any]
    at_ms: int


encode = msgspec.msgpack.Encoder().encode
decode_any = msgspec.msgpack.Decoder().decode
decode_record = msgspec.msgpack.Decoder(Record).decode
decode_progress = msgspec.msgpack.Decoder(Progress).decode

_decode_body = msgspec.msgpack.Decoder(Body).decode

NIL = encode(None)
"""The value of a job that returned nothing, or whose value is not kept."""

FRESH = bytes((VERSION, 0, 1, 0))
"""The head of a job that has never been tried."""


def frame(body: Body) -> bytes:
    """The frame of a new job."""
    return FRESH + encode(body)


def frame_head(job: bytes) -> tuple[int, int, int]:
    """Version, attempt and deferrals of any frame; (0, 1, 0) for bytes too short to be one."""
    if len(job) < HEAD:
        return 0, 1, 0
    return job[0], job[1] << 8 | job[2], job[3]


def with_counts(job: bytes, attempt: int, deferrals: int) -> bytes:
    """The same job with other counters, whatever version its body has."""
    return job[:1] + attempt.to_bytes(2, "big") + bytes((min(deferrals, MAX_DEFERRALS),)) + job[HEAD:]


def decode_body(job: bytes) -> Body:
    """The body of a version 1 frame.

    Raises:
        msgspec.DecodeError: it is not one (msgspec.ValidationError is a subclass).
    """
    return _decode_body(job[HEAD:])

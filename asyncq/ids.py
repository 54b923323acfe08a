"""Job ids: made by the client, so that a push can be repeated and a job named before Redis has seen it.

An id is 20 characters: 40 bits of milliseconds since `EPOCH_MS`, then 80 random bits, in an alphabet
whose ASCII order is its numeric order. So ids sort by time, cannot be guessed, and never start with a
dash. In a queue of several partitions `~n` follows and says where the job lives; ids that users choose
may therefore not contain `~`, and live where their checksum puts them.
"""

from __future__ import annotations

import os
import re
from binascii import b2a_base64
from zlib import crc32

from asyncq.errors import ConfigError

__all__ = ["check_job_id", "made_ms", "new_ids", "partition_of"]

EPOCH_MS = 1_704_067_200_000  # 2024-01-01; 40 bits last until 2058
RANDOM_BYTES = 10
LENGTH = 20

_STANDARD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_ORDERED = b"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_TO_ORDERED = bytes.maketrans(_STANDARD, _ORDERED)
_CHOSEN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@/+=-]{0,127}")


def new_ids(count: int, now_ms: int, suffix: str = "") -> list[str]:
    """`count` fresh ids for one moment, for the price of one `os.urandom`."""
    stamp = max(0, now_ms - EPOCH_MS).to_bytes(5, "big")
    random = os.urandom(RANDOM_BYTES * count)
    raw = b"".join([stamp + random[i : i + RANDOM_BYTES] for i in range(0, len(random), RANDOM_BYTES)])
    text = b2a_base64(raw, newline=False).translate(_TO_ORDERED).decode("ascii")
    return [text[i : i + LENGTH] + suffix for i in range(0, len(text), LENGTH)]


def made_ms(job_id: str) -> int | None:
    """When a generated id was made, in ms since the Unix epoch; None for an id that a user chose."""
    digits = job_id.partition("~")[0]
    if len(digits) != LENGTH or any(ord(c) not in _ORDERED for c in digits):
        return None
    value = 0
    for character in digits[:7]:
        value = value << 6 | _ORDERED.index(ord(character))
    return EPOCH_MS + (value >> 2)


def check_job_id(job_id: str) -> str:
    """An id chosen by a user, checked.

    Raises:
        ConfigError: it is empty, too long, or has characters that ids may not have.
    """
    if not _CHOSEN.fullmatch(job_id):
        raise ConfigError(
            f"job_id {job_id!r} cannot be used: 1 to 128 of letters, digits and _.:@/+=-, "
            "beginning with a letter, digit or underscore"
        )
    return job_id


def partition_of(job_id: str, partitions: int) -> int:
    """The partition a job lives in: its `~n`, else its checksum."""
    if partitions == 1:
        return 0
    _, mark, number = job_id.rpartition("~")
    if mark and number.isdecimal() and int(number) < partitions:
        return int(number)
    return crc32(job_id.encode()) % partitions

"""When a failed job runs again. Pure: chance is passed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from asyncq.clock import LONGEST_S
from asyncq.errors import ConfigError

__all__ = ["MAX_ATTEMPTS", "Retry"]

MAX_ATTEMPTS = 65_535
"""What the job frame's attempt counter holds."""


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How often a job is tried and how long it waits in between. Delays are in seconds.

    attempts:    runs in all, the first included. None: one more than `delays`, or 3.
    delays:      wait before the 2nd, 3rd, … run, exactly; the last one repeats. Leave empty for `backoff`.
    backoff:     "exponential": base x factor^(failures-1), at most `max`; "linear": base x failures, at most
                 `max`; "constant": base.
    jitter:      spread a backoff over the upper half of each delay, so that jobs that failed together do not
                 return together. `delays` are kept as they are.
    on:          retry only these exceptions; all by default.
    give_up_on:  never retry these; checked first.

    Raises:
        ConfigError: attempts or delays that make no sense.
    """

    attempts: int | None = None
    delays: tuple[float, ...] = ()
    backoff: Literal["exponential", "linear", "constant"] = "exponential"
    base: float = 5.0
    factor: float = 2.0
    max: float = 3600.0
    jitter: bool = True
    on: tuple[type[BaseException], ...] = (BaseException,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        force = msgspec.structs.force_setattr
        force(self, "delays", tuple(self.delays))
        force(self, "on", _classes("on", self.on))
        force(self, "give_up_on", _classes("give_up_on", self.give_up_on))
        if self.attempts is not None and not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise ConfigError(f"Retry(attempts={self.attempts}): must be from 1 to {MAX_ATTEMPTS}")
        if self.backoff not in ("exponential", "linear", "constant"):
            raise ConfigError(f"Retry(backoff={self.backoff!r}): exponential, linear or constant")
        if not all(0 <= delay <= LONGEST_S for delay in (self.base, self.max, *self.delays)) or not self.factor >= 1:
            raise ConfigError("Retry: delays, base and max are seconds from 0 to 100 years, and factor not below 1")

    @property
    def limit(self) -> int:
        """Runs in all, the first included."""
        if self.attempts is not None:
            return self.attempts
        return len(self.delays) + 1 if self.delays else 3

    def delay_ms(self, failures: int, jitter: float) -> int:
        """Wait after the `failures`-th failure (from 1), in ms; `jitter` is a random number in [0, 1)."""
        if self.delays:
            return round(self.delays[min(failures, len(self.delays)) - 1] * 1000)
        if self.backoff == "exponential":
            try:
                delay = self.base and self.base * float(self.factor) ** (failures - 1)
            except OverflowError:
                delay = self.max
        elif self.backoff == "linear":
            delay = self.base * failures
        else:
            delay = self.base
        delay = min(delay, self.max)
        if self.jitter:
            delay *= 0.5 + jitter / 2
        return round(delay * 1000)

    def covers(self, error: BaseException) -> bool:
        """Whether this exception may be tried again at all."""
        return not isinstance(error, self.give_up_on) and isinstance(error, self.on)


def _classes(name: str, value: Any) -> tuple[type[BaseException], ...]:
    classes = tuple(value) if isinstance(value, Sequence) else (value,)
    if not all(isinstance(c, type) and issubclass(c, BaseException) for c in classes):
        raise ConfigError(f"Retry({name}={value!r}): exception classes are needed")
    return classes

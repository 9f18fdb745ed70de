"""When waiting for others ends."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from weightpager.errors import ConfigError
from weightpager.interrupts import acquire


@dataclass(frozen=True)
class Deadline:
    """When waiting for other tasks and threads ends.

    Attributes:
        end: by `time.monotonic`; None never.
    """

    end: float | None

    @classmethod
    def after(cls, timeout: float | None) -> Deadline:
        """The end of a timeout that begins now; `NEVER` without one.

        Raises:
            ConfigError: it is no number of seconds.
        """
        if timeout is None:
            return NEVER
        if not timeout >= 0:
            raise ConfigError(f"timeout: expected seconds from 0, or None, got {timeout}")
        return cls(time.monotonic() + timeout)

    def left(self) -> float | None:
        """Seconds until then, as a timeout that `threading` takes; None if it never comes."""
        return None if self.end is None else min(max(0.0, self.end - time.monotonic()), threading.TIMEOUT_MAX)

    def acquire(self, lock: threading.Lock | threading.RLock) -> bool:
        """Acquire a lock until then, as `interrupts.acquire` does. Returns whether that was done."""
        return acquire(lock, self.left())


NEVER = Deadline(None)

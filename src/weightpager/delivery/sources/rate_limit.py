"""`RateLimit`: bytes per second that all connections together may take."""

from __future__ import annotations

import threading
import time

_BEHIND = 0.25
"""Seconds that may be made up for. A sleep that was a little too long would else cost a part of the rate for good."""


class RateLimit:
    """Lets those who have received bytes wait until they were due: who reads late makes a server send late."""

    def __init__(self, bytes_per_second: float | None = None) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def wait_for(self, count: int) -> None:
        """Wait until so many bytes were due."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _BEHIND) + count / self._rate
            wait = self._free_at - now
        if wait > 0:
            time.sleep(wait)

"""A slow disk of one's own: reads wait until their bytes would have arrived.

The kernel's throttle lets a tenth of a second's bytes pass at once, which is all that a short switch reads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from weightpager.bundle import Bundle
from weightpager.store import LocalStore


class Pace:
    """So many bytes in a second, over all threads.

    Reads take their turn one after the other; time in which nothing is read earns nothing.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    @contextmanager
    def reading(self, count: int) -> Iterator[None]:
        """A read of so many bytes, which ends no earlier than they would have arrived."""
        with self._lock:
            arrived = self._free_at = max(self._free_at, time.perf_counter()) + count / self._rate
        yield
        wait = arrived - time.perf_counter()
        if wait > 0:
            time.sleep(wait)


class PacedStore:
    """A bundle's files on a slower disk."""

    def __init__(self, bundle: Bundle, pace: Pace) -> None:
        self._files = LocalStore(bundle)
        self._pace = pace
        self.direct = self._files.direct

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        with self._pace.reading(sum(map(len, into))):
            self._files.read(first, into)

    def span(self, first: int) -> int:
        return self._files.span(first)

    def close(self) -> None:
        self._files.close()

"""A slow disk where the kernel can't make one: reads wait until their bytes would have arrived."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from weightpager.store import LocalStore


class Pace:
    """Lets so many bytes pass in a second, over all threads.

    A read is let go when the bytes before it would have arrived; time in which nothing is read earns nothing.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Wait as long as these bytes take."""
        with self._lock:
            self._free_at = max(self._free_at, time.perf_counter()) + count / self._rate
            wait = self._free_at - time.perf_counter()
        if wait > 0:
            time.sleep(wait)


class PacedStore:
    """A bundle's files on a slower disk.

    Attributes:
        direct: whether reads bypass the page cache.
    """

    def __init__(self, inner: LocalStore, pace: Pace) -> None:
        self._inner, self._pace = inner, pace
        self.direct = inner.direct

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        """See `PageStore.read`."""
        self._inner.read(first, into)
        self._pace.take(sum(map(len, into)))

    def span(self, first: int) -> int:
        """See `PageStore.span`."""
        return self._inner.span(first)

    def close(self) -> None:
        """See `PageStore.close`."""
        self._inner.close()

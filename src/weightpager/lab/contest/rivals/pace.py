"""A slow disk of one's own: reads wait until their bytes would have arrived.

The kernel's throttle lets a tenth of a second's bytes pass at once, which is all that a short switch reads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from weightpager.errors import ConfigError


class Pace:
    """So many bytes in a second, over all threads.

    Reads take their turn one after the other; time in which nothing is read earns nothing.

    Attributes:
        bytes_per_second: of the disk.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    @contextmanager
    def reading(self, count: int) -> Iterator[None]:
        """A read of so many bytes, which ends no earlier than they would have arrived."""
        with self._lock:
            arrived = self._free_at = max(self._free_at, time.perf_counter()) + count / self.bytes_per_second
        yield
        wait = arrived - time.perf_counter()
        if wait > 0:
            time.sleep(wait)


@contextmanager
def slow_engines(bytes_per_second: float) -> Iterator[None]:
    """Engines that are opened and used inside the ``with`` block read from such a disk; all else of a switch stays.

    Raises:
        ConfigError: the native module isn't there.
    """
    try:
        import weightpager.kernels._native as _native
    except ImportError as error:
        raise ConfigError("a slow disk is imitated by the native module: expected it, found no build of it") from error
    _native.imitate_storage(bytes_per_second)
    try:
        yield
    finally:
        _native.imitate_storage(0.0)

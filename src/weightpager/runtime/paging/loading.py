"""A load that is going on, and what loading has cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from weightpager.runtime.paging.page_waits import Arrivals
from weightpager.runtime.paging.pager import Load


@dataclass(frozen=True)
class LoadStats:
    """What loading cost: reads issued, bytes in them, seconds until the last was checked."""

    reads: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: LoadStats) -> LoadStats:
        return LoadStats(self.reads + other.reads, self.bytes + other.bytes, self.seconds + other.seconds)


@dataclass(frozen=True, eq=False)
class Loading:
    """Pages on their way for one task: those of its own load, and those that an earlier one was bringing already."""

    load: Load
    arrivals: Arrivals
    page_bytes: int
    start: float = field(default_factory=time.perf_counter)

    def cost(self, *, until_now: bool) -> LoadStats:
        """Of its own load."""
        seconds = time.perf_counter() - self.start if until_now and self.load.reads else 0.0
        return LoadStats(self.load.reads, len(self.load.slots) * self.page_bytes, seconds)

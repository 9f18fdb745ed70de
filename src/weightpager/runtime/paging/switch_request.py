"""What a switch is asked for, what is on its way for it, and what that cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from weightpager.errors import ConfigError, SwitchFailedError, WeightpagerError
from weightpager.interrupts import acquire
from weightpager.runtime.memory.table_cache import Expandable
from weightpager.runtime.paging.load import Priority
from weightpager.runtime.paging.page_waits import PendingPages
from weightpager.runtime.planning.plans import Uses


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


@dataclass(frozen=True)
class SwitchRequest:
    """A task that is wanted in the arena.

    Attributes:
        task: its number.
        name: its name, for errors.
        previous: number of the task that is left for it, None if none is.
        give_up: releases the previous task. Called once, if both don't fit together, when that can be kept no longer.
        deadline: when waiting for other tasks to leave or for another switch ends; `NEVER` never waits for a task, and
            as long as it takes for a switch.
        wait: whether to return only when all pages are there.
        priority: the priority of its reads.
        ask_uses: gives the expected uses of each task, for eviction; None goes by recency alone.
        tables: its block tables, expanded while it is held; None if it has none.
        previous_tables: the previous task's block tables.
    """

    task: int
    name: str
    previous: int | None = None
    give_up: Callable[[], None] = lambda: None
    deadline: Deadline = NEVER
    wait: bool = True
    priority: Priority = Priority.ON_DEMAND
    ask_uses: Callable[[], Uses] | None = None
    tables: Expandable | None = None
    previous_tables: Expandable | None = None

    def after_give_up(self) -> SwitchRequest:
        """The request that remains once the previous task has been given up."""
        return replace(self, previous=None, previous_tables=None)

    def failed(self, error: WeightpagerError) -> SwitchFailedError:
        """The error for a failure after the previous task has been given up."""
        return SwitchFailedError(f"switching to {self.name!r} failed, no task is active now: {error}")


@dataclass(frozen=True)
class LoadStats:
    """What loading cost: reads issued, bytes in them, seconds until the last was checked."""

    reads: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: LoadStats) -> LoadStats:
        return LoadStats(self.reads + other.reads, self.bytes + other.bytes, self.seconds + other.seconds)


@dataclass(frozen=True, eq=False)
class PendingLoad:
    """Pages on their way for one task.

    Attributes:
        reads: reads issued for it.
        bytes: bytes in these reads.
        pages: the pages that it waits for: its own, and those that an earlier load was bringing already.
        start: when it began, by `time.perf_counter`.
    """

    reads: int
    bytes: int
    pages: PendingPages
    start: float = field(default_factory=time.perf_counter)

    def cost(self, *, until_now: bool) -> LoadStats:
        """What its own reads cost, without those of the earlier load."""
        seconds = time.perf_counter() - self.start if until_now and self.reads else 0.0
        return LoadStats(self.reads, self.bytes, seconds)

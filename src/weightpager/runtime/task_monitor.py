"""Records which task ran when: the history that prediction and the compiler's transition matrix learn from."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Visit:
    """A task became the current one.

    Attributes:
        task: its name.
        start: seconds; it stayed until the next visit.
        resumed: nobody knows what was between the visit before and this one, since the program had ended: no switch
            leads here, and the visit before has no known length.
    """

    task: str
    start: float
    resumed: bool = False


class TaskMonitor:
    """A bounded history of visits, and counts that never forget. Safe to use from several threads.

    Args:
        limit: visits kept.
        clock: seconds, never going backwards.
    """

    def __init__(self, limit: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._visits: deque[Visit] = deque(maxlen=limit)
        self._followed: Counter[tuple[str, str]] = Counter()
        self.requests: dict[str, int] = {}
        self.switches = 0

    def record(self, task: str) -> str | None:
        """A task was asked for; a switch if it isn't the one that was asked for last, which is returned."""
        with self._lock:
            before = self._visits[-1].task if self._visits else None
            self.requests[task] = self.requests.get(task, 0) + 1
            if before != task:
                self._visits.append(Visit(task, self._clock()))
                if before is not None:
                    self.switches += 1
                    self._followed[before, task] += 1
            return before

    def followed(self, tasks: Sequence[str]) -> npt.NDArray[np.int64]:
        """How often each of the tasks was followed by each other, [tasks, tasks]."""
        with self._lock:
            return np.array([[self._followed[a, b] for b in tasks] for a in tasks], np.int64)

    @property
    def current(self) -> str | None:
        """The task that was asked for last."""
        return self._visits[-1].task if self._visits else None

    def visits(self) -> list[Visit]:
        """The visits kept, oldest first."""
        with self._lock:
            return list(self._visits)

    def dwell_seconds(self) -> dict[str, list[float]]:
        """How long each finished visit lasted, by task."""
        dwell: dict[str, list[float]] = {}
        visits = self.visits()
        for visit, following in pairwise(visits):
            dwell.setdefault(visit.task, []).append(following.start - visit.start)
        return dwell

    def trace(self) -> list[dict[str, object]]:
        """Rows of a trace file (JSON lines), which ``transitions:`` of a task file reads."""
        return [{"task": visit.task, "time": visit.start} for visit in self.visits()]

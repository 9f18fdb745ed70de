"""Records which task ran when: the history that prediction and the compiler's transition matrix learn from."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Visit:
    """A task became the current one at ``start`` seconds; it stayed until the next visit."""

    task: str
    start: float


class TaskMonitor:
    """A bounded history of visits, and counts that never forget.

    Args:
        limit: visits kept.
        clock: seconds, never going backwards.
    """

    def __init__(self, limit: int = 10_000, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._visits: deque[Visit] = deque(maxlen=limit)
        self.requests: dict[str, int] = {}
        self.switches = 0

    def record(self, task: str) -> None:
        """A task was asked for; a switch if it isn't the one that was asked for last."""
        self.requests[task] = self.requests.get(task, 0) + 1
        if self._visits and self._visits[-1].task == task:
            return
        self.switches += bool(self._visits)
        self._visits.append(Visit(task, self._clock()))

    @property
    def current(self) -> str | None:
        """The task that was asked for last."""
        return self._visits[-1].task if self._visits else None

    def visits(self) -> list[Visit]:
        """The visits kept, oldest first."""
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

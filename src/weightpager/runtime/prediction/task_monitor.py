"""Records which task ran when: the history that prediction and the compiler's transition matrix learn from."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from weightpager.runtime.prediction.history import History, HistoryFile
from weightpager.trace_file import Visit

Floats = npt.NDArray[np.float64]

DISCOUNT = 0.5
"""What a use is worth that comes one switch later."""


class TaskMonitor:
    """A bounded history of visits, and counts that never forget. Safe to use from several threads.

    With a file it starts with the history of earlier runs, and keeps its own there. Times of earlier runs are on the
    same clock, as far back as they were by the wall clock. The time between two runs belongs to no visit.

    Args:
        limit: visits kept.
        clock: seconds, never going backwards.
        file: keeps the history across restarts; None keeps it in memory only. ``close`` closes it.

    Attributes:
        requests: how often each task was asked for, by name.
        switches: how often another task was asked for than the time before.
    """

    def __init__(
        self, limit: int = 10_000, clock: Callable[[], float] = time.monotonic, file: HistoryFile | None = None
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._visits: deque[Visit] = deque(maxlen=limit)
        self._followed: Counter[tuple[str, str]] = Counter()
        self._current: str | None = None
        self._file = file
        self._wall = time.time() - clock()  # seconds since 1970 when the clock was 0
        self.requests: dict[str, int] = {}
        self.switches = 0
        if file is not None:
            self._restore(file.restore())

    def record(self, task: str) -> str | None:
        """A task was asked for. Returns the one that was asked for last; if that is another, this is a switch."""
        with self._lock:
            before = self._current
            self.requests[task] = self.requests.get(task, 0) + 1
            if self._file is not None:
                self._file.request(task)
            if before != task:
                self._begin(task, before)
            return before

    def followed(self, tasks: Sequence[str]) -> npt.NDArray[np.int64]:
        """How often each of the tasks was followed by each other, [tasks, tasks]."""
        numbers = {task: number for number, task in enumerate(tasks)}
        counts = np.zeros((len(tasks), len(tasks)), np.int64)
        with self._lock:
            for (before, after), times in self._followed.items():
                if before in numbers and after in numbers:
                    counts[numbers[before], numbers[after]] = times
        return counts

    @property
    def current(self) -> str | None:
        """The task that was asked for last; None before the first request of this run."""
        return self._current

    def visits(self) -> list[Visit]:
        """The visits kept, oldest first."""
        with self._lock:
            return list(self._visits)

    def dwell_seconds(self) -> dict[str, list[float]]:
        """How long each finished visit lasted, by task."""
        dwell: dict[str, list[float]] = {}
        for visit, following in _switches(self.visits()):
            dwell.setdefault(visit.task, []).append(following.start - visit.start)
        return dwell

    def trace(self) -> list[dict[str, object]]:
        """Rows of a trace file (JSON lines), which ``transitions:`` of a task file reads."""
        return [visit.row() for visit in self.visits()]

    def close(self) -> None:
        """Write everything to the file, if there is one."""
        if self._file is not None:
            self._file.close()

    def _begin(self, task: str, before: str | None) -> None:
        start = self._clock()
        self._visits.append(Visit(task, start, resumed=before is None and bool(self._visits)))
        self._current = task
        if before is not None:
            self.switches += 1
            self._followed[before, task] += 1
        if self._file is not None:
            self._file.add(task, start + self._wall, switch=before is not None)

    def _restore(self, history: History) -> None:
        visits = history.visits
        # The wall clock may have been set back meanwhile; the past stays past.
        self._wall = max([self._wall, *(visit.start - self._clock() for visit in visits[-1:])])
        self._visits.extend(replace(visit, start=visit.start - self._wall) for visit in visits)
        self._followed.update((visit.task, following.task) for visit, following in _switches(visits))
        self.requests.update(history.requests)
        self.switches = history.switches


def _switches(visits: Sequence[Visit]) -> Iterator[tuple[Visit, Visit]]:
    """Every visit whose end is known, and the one that it led to."""
    return ((visit, following) for visit, following in pairwise(visits) if not following.resumed)


def expected_uses_after(switches: npt.NDArray[np.integer], task: int) -> npt.NDArray[np.float64]:
    """Expected uses of each task after ``task``, one k switches away counting `DISCOUNT` to the power of k - 1.

    Args:
        switches: [tasks, tasks], how often one task was followed by another. Tasks of which nothing is known yet are
            followed by any other with the same probability.
        task: the one that runs next.
    """
    chances = _chances(switches)
    return _uses(chances, chances[task], DISCOUNT)


def expected_uses(
    switches: npt.NDArray[np.integer], following: npt.NDArray[np.floating], discount: float | npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Expected uses of each task [tasks], as by `expected_uses_after`, when the next one is known by its chances.

    With p those chances, P the matrix of transition probabilities and G a diagonal of discounts: ``p (I - G P)^-1``.

    Args:
        switches: [tasks, tasks], how often one task was followed by another.
        following: [tasks], probability that each is the next.
        discount: what a use is worth that comes one switch later; or, for each task, what follows it [tasks].
    """
    return _uses(_chances(switches), following, discount)


def _uses(chances: Floats, following: npt.NDArray[np.floating], discount: float | npt.NDArray[np.floating]) -> Floats:
    now_and_later = -chances.T * discount  # this and the next line run at every switch that must choose
    now_and_later.flat[:: len(chances) + 1] += 1
    uses: Floats = np.linalg.solve(now_and_later, following)
    return uses


def _chances(switches: npt.NDArray[np.integer]) -> Floats:
    count = len(switches)
    counts = switches + 1 / max(1, count - 1)
    counts.flat[:: count + 1] -= 1 / max(1, count - 1)
    chances: Floats = counts / np.maximum(counts.sum(1, keepdims=True), 1e-300)
    return chances

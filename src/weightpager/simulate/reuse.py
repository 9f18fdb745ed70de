"""Who says which tasks will be used again, for eviction alone: from what has been, or from what will be."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weightpager.runtime.prefetch.expected_uses import expected_uses_after

Floats = npt.NDArray[np.float64]


class CountedReuse:
    """Counts which task followed which, as an engine without prefetch does. Implements `UsePredictor`."""

    def __init__(self, tasks: int) -> None:
        """Nothing was seen yet.

        Args:
            tasks: how many there are.
        """
        self._followed = np.zeros((tasks, tasks), np.int64)
        self._current: int | None = None

    def observe(self, task: int, seconds: float) -> None:  # noqa: ARG002 - the protocol's
        """Implements `UsePredictor.observe`."""
        if self._current is not None and task != self._current:
            self._followed[self._current, task] += 1
        self._current = task

    def uses(self, seconds: float) -> None:
        """Implements `UsePredictor.uses`. Nothing is prefetched."""

    def uses_after(self, task: int) -> Floats:
        """Implements `UsePredictor.uses_after`."""
        return expected_uses_after(self._followed, task)


class KnownReuse:
    """Knows which tasks will be asked for, and in which order. Implements `UsePredictor`.

    A task is worth more than all that are asked for later together, so that the pages that go first are those that are
    needed last: Belady's rule, which loads the least for a given order of requests.
    """

    def __init__(self, tasks: int, requests: Sequence[int]) -> None:
        """Know the future.

        Args:
            tasks: how many there are.
            requests: the task of each, in the order in which they will come.
        """
        self._coming: list[deque[int]] = [deque() for _ in range(tasks)]
        for place, task in enumerate(requests):
            self._coming[task].append(place)

    def observe(self, task: int, seconds: float) -> None:  # noqa: ARG002 - the protocol's
        """A request of this task is served. Implements `UsePredictor.observe`."""
        self._coming[task].popleft()

    def uses(self, seconds: float) -> None:
        """Implements `UsePredictor.uses`. Nothing is prefetched."""

    def uses_after(self, task: int) -> Floats:  # noqa: ARG002 - the request that comes now is the task's next one
        """Implements `UsePredictor.uses_after`."""
        coming = [task for task, places in enumerate(self._coming) if places]
        coming.sort(key=lambda task: self._coming[task][0])
        worth = np.zeros(len(self._coming))
        worth[coming] = 3.0 ** -np.arange(len(coming))  # each is more than the sum of those after it
        return worth

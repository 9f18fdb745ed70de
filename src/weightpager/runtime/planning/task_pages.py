"""Which pages each task needs, and what follows for the pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weightpager.runtime.planning.plans import NO_PAGES, Pages


class TaskPages:
    """The pages of tasks that are numbers. Tasks may come and leave, a number is used once. Not thread-safe.

    Many pages have the same signature: what is asked of each page's tasks is computed once for each signature.
    """

    def __init__(self, needs: Sequence[Pages], pages: int) -> None:
        """Start with the tasks that there are.

        Args:
            needs: of each task the pages, ascending.
            pages: numbers that pages can have.
        """
        self._needs = list(needs)
        self._needed_by: npt.NDArray[np.bool_] = np.zeros((pages, len(needs)), bool, order="F")
        for task, need in enumerate(needs):
            self._needed_by[need, task] = True
        self._group()

    @property
    def tasks(self) -> int:
        """Numbers of tasks, also of those that were removed."""
        return len(self._needs)

    def of(self, task: int) -> Pages:
        """A task's pages, ascending."""
        return self._needs[task]

    def needed_by(self, task: int) -> npt.NDArray[np.bool_]:
        """Whether a task needs each page [pages]. Not to be changed."""
        return self._needed_by[:, task]

    def needed_by_any(self, tasks: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Whether at least one of these tasks needs each page [pages]."""
        if not len(tasks):
            return np.zeros(len(self._needed_by), bool)
        needed: npt.NDArray[np.bool_] = self._needed_by[:, tasks[0]].copy()
        for task in tasks[1:]:
            needed |= self._needed_by[:, task]
        return needed

    def count(self, pages: Pages) -> npt.NDArray[np.int64]:
        """How many of these pages each task needs [tasks]."""
        counts: npt.NDArray[np.int64] = self._needed_by[pages].sum(0)
        return counts

    def sums(self, tasks: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """For each page [pages], the sum of the numbers [tasks] of the tasks that need it."""
        sums: npt.NDArray[np.float64] = (self._signatures @ tasks)[self._signature_of]
        return sums

    def greatest(self, tasks: npt.NDArray[np.integer], pages: Pages) -> npt.NDArray[np.float64]:
        """For each of ``pages``, the greatest of the numbers ≥ 0 [tasks] of the tasks that need it."""
        greatest: npt.NDArray[np.float64] = (self._signatures * tasks).max(1, initial=0)[self._signature_of[pages]]
        return greatest

    @property
    def differential(self) -> float:
        """What a task needs that another one lacks, in pages: the mean over all ordered pairs of tasks."""
        present = np.flatnonzero([len(need) for need in self._needs])
        if len(present) < 2:
            return 0.0
        tasks = self._signatures[:, present]
        shared = tasks.T @ (np.bincount(self._signature_of, minlength=len(tasks))[:, None] * tasks)
        pairs = len(present) * (len(present) - 1)
        return float((len(present) * np.trace(shared) - shared.sum()) / pairs)

    def add(self, need: Pages) -> int:
        """Add a task that needs these pages, ascending. Returns its number."""
        self._needs.append(need)
        column = np.zeros((len(self._needed_by), 1), bool)
        column[need] = True
        self._needed_by = np.asfortranarray(np.hstack([self._needed_by, column]))
        self._group()
        return len(self._needs) - 1

    def remove(self, task: int) -> None:
        """A task needs nothing any more."""
        self._needs[task] = NO_PAGES
        self._needed_by[:, task] = False
        self._group()

    def _group(self) -> None:
        packed = np.packbits(self._needed_by, axis=1)
        rows = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1])))[:, 0]
        _, first, self._signature_of = np.unique(rows, return_index=True, return_inverse=True)
        self._signatures = self._needed_by[first].astype(np.float64)

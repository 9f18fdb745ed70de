"""Which pages each task needs, and what follows for the pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weightpager.runtime.planning.plans import NO_PAGES, Pages


class TaskPages:
    """The pages of tasks that are numbers. Tasks may come and leave, a number is used once. Not thread-safe.

    Many pages have the same signature: what is asked of each page's tasks is computed once for each signature. A task
    that comes gets the column of one that was removed, if there is one: tasks of the past cost nothing.
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
        self._columns = {task: task for task in range(len(needs))}
        self._task_of: npt.NDArray[np.int64] = np.arange(len(needs))  # of each column, its latest
        self._free: list[int] = []
        self._groups: tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]] | None = None
        self._grouped()  # before anybody waits for it

    @property
    def tasks(self) -> int:
        """Numbers of tasks, also of those that were removed."""
        return len(self._needs)

    def of(self, task: int) -> Pages:
        """A task's pages, ascending."""
        return self._needs[task]

    def needed_by(self, task: int) -> npt.NDArray[np.bool_]:
        """Whether a task needs each page [pages]. Not to be changed."""
        column = self._columns.get(task)
        return np.zeros(len(self._needed_by), bool) if column is None else self._needed_by[:, column]

    def needed_by_any(self, tasks: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Whether at least one of these tasks needs each page [pages]."""
        if not len(tasks):
            return np.zeros(len(self._needed_by), bool)
        needed: npt.NDArray[np.bool_] = self.needed_by(tasks[0]).copy()
        for task in tasks[1:]:
            needed |= self.needed_by(task)
        return needed

    def count(self, pages: Pages) -> npt.NDArray[np.int64]:
        """How many of these pages each task needs [tasks]."""
        counts = np.zeros(self.tasks, np.int64)
        counts[self._task_of] = self._needed_by[pages].sum(0)
        return counts

    def sums(self, tasks: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """For each page [pages], the sum of the numbers [tasks] of the tasks that need it."""
        signatures, signature_of = self._grouped()
        sums: npt.NDArray[np.float64] = (signatures @ tasks[self._task_of])[signature_of]
        return sums

    def greatest(self, tasks: npt.NDArray[np.integer], pages: Pages) -> npt.NDArray[np.float64]:
        """For each of ``pages``, the greatest of the numbers ≥ 0 [tasks] of the tasks that need it."""
        signatures, signature_of = self._grouped()
        greatest: npt.NDArray[np.float64] = (signatures * tasks[self._task_of]).max(1, initial=0)[signature_of[pages]]
        return greatest

    @property
    def differential(self) -> float:
        """What a task needs that another one lacks, in pages: the mean over all ordered pairs of tasks."""
        signatures, signature_of = self._grouped()
        tasks = signatures[:, signatures.any(0)]
        count = tasks.shape[1]
        if count < 2:
            return 0.0
        shared = tasks.T @ (np.bincount(signature_of, minlength=len(tasks))[:, None] * tasks)
        return float((count * np.trace(shared) - shared.sum()) / (count * (count - 1)))

    def add(self, need: Pages) -> int:
        """Add a task that needs these pages, ascending. Returns its number."""
        task = len(self._needs)
        if not self._free:
            self._add_column()
        column = self._free.pop()
        self._needed_by[need, column] = True
        self._task_of[column] = task
        self._columns[task] = column
        self._needs.append(need)
        self._groups = None
        return task

    def remove(self, task: int) -> None:
        """A task needs nothing any more."""
        self._needs[task] = NO_PAGES
        column = self._columns.pop(task)
        self._needed_by[:, column] = False
        self._free.append(column)
        self._groups = None

    def _add_column(self) -> None:
        pages, columns = self._needed_by.shape
        needed_by = np.zeros((pages, columns + 1), bool, order="F")
        needed_by[:, :columns] = self._needed_by
        self._needed_by = needed_by
        self._task_of = np.append(self._task_of, 0)
        self._free.append(columns)

    def _grouped(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """The signatures [signatures, columns], and of each page the number of its own [pages]."""
        if self._groups is None:
            packed = np.packbits(self._needed_by, axis=1)
            rows = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1])))[:, 0]
            _, first, signature_of = np.unique(rows, return_index=True, return_inverse=True)
            self._groups = self._needed_by[first].astype(np.float64), signature_of
        return self._groups

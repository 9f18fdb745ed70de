"""Books of pages, which are numbers: who needs which, what is in which slot, what is to come, what was prefetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.int64]

NO_PAGES: Pages = np.zeros(0, np.int64)

Uses = npt.NDArray[np.floating]
"""[tasks], how often each task is expected to be used in the near future."""


@dataclass(frozen=True, eq=False)
class Occupancy:
    """A copy of what is where in an arena.

    Attributes:
        resident: bool [pages].
        loading: bool [pages], those that a slot is reserved for.
        locked: bool [pages], those that may not go.
        free: slots that nothing is in or on its way to.
    """

    resident: npt.NDArray[np.bool_]
    loading: npt.NDArray[np.bool_]
    locked: npt.NDArray[np.bool_]
    free: int


@dataclass(frozen=True)
class SwitchPlan:
    """The two phases of a switch: prepare, and where both tasks don't fit together, commit.

    Attributes:
        evict: resident pages that no task in use needs, given up in the prepare phase.
        loading: pages that an earlier load is bringing already.
        prepare: pages loaded while the previous task is still whole; ascending.
        commit: pages for which the previous task must be given up first; ascending. Empty if both fit together.
        evict_previous: pages of the previous task that are given up for these.
    """

    evict: Pages
    loading: Pages
    prepare: Pages
    commit: Pages
    evict_previous: Pages

    @property
    def has_prepare_phase(self) -> bool:
        """Whether pages are to come while the previous task is still whole."""
        return len(self.prepare) + len(self.loading) > 0

    @property
    def needs_commit(self) -> bool:
        return len(self.commit) > 0

    def commit_phase(self) -> SwitchPlan:
        """What remains once the prepare phase has ended and the previous task has been given up."""
        return _one_phase(evict=self.evict_previous, loading=NO_PAGES, prepare=self.commit)

    def merged(self) -> SwitchPlan:
        """Both phases in one, once the previous task has been given up."""
        return _one_phase(
            evict=np.concatenate([self.evict, self.evict_previous]),
            loading=self.loading,
            prepare=np.concatenate([self.prepare, self.commit]),
        )


def _one_phase(*, evict: Pages, loading: Pages, prepare: Pages) -> SwitchPlan:
    return SwitchPlan(evict, loading, prepare, commit=NO_PAGES, evict_previous=NO_PAGES)


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
        return len(self._needs)

    def of(self, task: int) -> Pages:
        return self._needs[task]

    def needed_by(self, task: int) -> npt.NDArray[np.bool_]:
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


ABSENT = -1


class Slots:
    """The slots of an arena. Each is free, reserved for a page that is being loaded, has a page, or is retired.

    Not thread-safe. It knows nothing of tasks.

    Attributes:
        page_table: int32 [pages], page index → slot, `ABSENT` where absent. Updated in place, never replaced.
        reserved: int32 [pages], page index → slot while the page is being loaded, `ABSENT` otherwise.
    """

    def __init__(self, pages: int, usable: int, capacity: int, together: int = 1) -> None:
        """All are free, or retired.

        Args:
            pages: numbers that pages can have.
            usable: slots that may be used.
            capacity: slots that there are.
            together: slots that should be retired together, counted from slot 0: a group.
        """
        self._together = together
        self.page_table: npt.NDArray[np.int32] = np.full(pages, ABSENT, np.int32)
        self.reserved: npt.NDArray[np.int32] = np.full(pages, ABSENT, np.int32)
        self._page_of_slot = np.full(capacity, ABSENT, np.int64)
        self._free = list(range(usable - 1, -1, -1))
        self._retired = list(range(capacity - 1, usable - 1, -1))

    @property
    def capacity(self) -> int:
        return len(self._page_of_slot)

    @property
    def usable(self) -> int:
        return len(self._page_of_slot) - len(self._retired)

    @property
    def free(self) -> int:
        return len(self._free)

    def reserve(self, pages: Pages) -> npt.NDArray[np.int32]:
        """Take a free slot for each absent page. Returns them, int32 [pages]. The pages stay absent until `publish`."""
        absent = (self.page_table[pages] == ABSENT).all() and (self.reserved[pages] == ABSENT).all()
        if not absent or len(pages) > len(self._free):
            raise ValueError("expected absent pages and a free slot for each")
        rest = len(self._free) - len(pages)
        slots = np.array(self._free[rest:][::-1], np.int32)
        del self._free[rest:]
        self.reserved[pages] = slots
        return slots

    def publish(self, pages: Iterable[int]) -> Pages:
        """Pages are in their reserved slots. Returns the pages."""
        came, slots = self._take_reserved(pages)
        self._page_of_slot[slots] = came
        self.page_table[came] = slots
        return came

    def cancel(self, pages: Iterable[int]) -> None:
        self._free.extend(self._take_reserved(pages)[1].tolist())

    def evict(self, pages: Pages) -> None:
        slots = self.page_table[pages]
        if (slots == ABSENT).any():
            raise ValueError("expected resident pages")
        self.page_table[pages] = ABSENT
        self._page_of_slot[slots] = ABSENT
        self._free.extend(slots[::-1].tolist())

    def to_retire(self, count: int, going: Pages) -> list[int]:
        """Choose so many slots, those of whole groups where that can be. Returns their numbers.

        Args:
            count: slots to retire.
            going: resident pages whose slots may be taken as well, in the order in which they go.
        """
        chosen = [*sorted(self._free, reverse=True), *self.page_table[going].tolist()]
        if self._together > 1:
            chosen = self._by_group(np.array(chosen, np.int64)).tolist()
        return chosen[:count]

    def pages_in(self, slots: Sequence[int]) -> Pages:
        found = self._page_of_slot[list(slots)]
        pages: Pages = found[found != ABSENT]
        return pages

    def retire(self, slots: Sequence[int]) -> None:
        gone = set(slots)
        if not gone <= set(self._free):
            raise ValueError("expected free slots")
        self._free = sorted(set(self._free) - gone, reverse=True)
        self._retired.extend(slots)

    def restore(self, count: int) -> list[int]:
        """Use so many retired slots again, those of groups in use first. Returns their numbers."""
        unused = self._in_groups(np.logical_and, self._is_retired())
        retired = np.array(self._retired, np.int64)
        back: list[int] = retired[np.lexsort((retired, unused[retired]))][:count].tolist()
        self._retired = sorted(set(self._retired) - set(back), reverse=True)
        self._free[:0] = reversed(back)
        return back

    def check_integrity(self) -> None:
        """Every slot is free, reserved, retired or names the page that names it.

        Raises:
            AssertionError: a bug of ours.
        """
        pages = np.flatnonzero(self.page_table != ABSENT)
        slots = self.page_table[pages]
        assert len(np.unique(slots)) == len(slots), "two pages in one slot"
        assert (self._page_of_slot[slots] == pages).all(), "a slot names another page"
        assert (np.flatnonzero(self._page_of_slot != ABSENT) == np.sort(slots)).all(), "a slot names an absent page"
        coming = np.flatnonzero(self.reserved != ABSENT)
        every = sorted([*self._free, *self._retired, *self.reserved[coming].tolist(), *slots.tolist()])
        assert every == list(range(self.capacity)), "a slot was lost or used twice"
        assert not len(np.intersect1d(coming, pages)), "a resident page is being loaded"

    def _is_retired(self) -> npt.NDArray[np.bool_]:
        retired = np.zeros(self.capacity, bool)
        retired[self._retired] = True
        return retired

    def _by_group(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Put slots that may be retired, the first ones first, into an order that empties one group after the other.

        A group of which slots are retired already comes first, then the one whose last slot comes first. Slots of
        groups that can't be emptied come last, as they are.
        """
        stuck, begun = len(slots), self._is_retired()
        rank = np.where(begun, -1, stuck)
        rank[slots] = np.arange(len(slots))
        last = self._in_groups(np.maximum, rank)[slots]
        fresh = ~self._in_groups(np.logical_or, begun)[slots] | (last == stuck)
        return slots[np.lexsort((rank[slots], last, fresh))]

    def _in_groups(self, join: np.ufunc, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values of slots [capacity], joined over each slot's group."""
        joined = join.reduceat(values, np.arange(0, self.capacity, self._together))
        return np.repeat(joined, self._together)[: self.capacity]

    def _take_reserved(self, pages: Iterable[int]) -> tuple[Pages, npt.NDArray[np.int32]]:
        """Pages that were being loaded, and the slots that were reserved for them."""
        loading: Pages = np.asarray(pages if isinstance(pages, np.ndarray) else list(pages), np.int64)
        slots = self.reserved[loading]
        if (slots == ABSENT).any():
            raise ValueError("expected pages that a slot is reserved for")
        self.reserved[loading] = ABSENT
        return loading, slots


@dataclass(frozen=True)
class PrefetchCounts:
    """What prefetching has brought, in pages.

    Attributes:
        loaded: pages that a prefetch loaded, whether they were used or not; without those that were late.
        hits: there when a task needed them.
        late: still on their way then.
        misses: loaded only when a task waited for them.
        wasted: gone again before any task needed them.
    """

    loaded: int = 0
    hits: int = 0
    late: int = 0
    misses: int = 0
    wasted: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the pages to be loaded that were there already; 0 if there were none."""
        wanted = self.hits + self.late + self.misses
        return self.hits / wanted if wanted else 0.0


class PrefetchLedger:
    """Follows each page that was prefetched until a task needs it or it goes. Not thread-safe.

    Args:
        pages: numbers that pages can have.
    """

    def __init__(self, pages: int) -> None:
        self._unused: npt.NDArray[np.bool_] = np.zeros(pages, bool)
        self._loaded = self._hits = self._late = self._misses = self._wasted = 0

    @property
    def counts(self) -> PrefetchCounts:
        return PrefetchCounts(self._loaded, self._hits, self._late, self._misses, self._wasted)

    def came(self, pages: Pages) -> None:
        self._unused[pages] = True
        self._loaded += len(pages)

    def went(self, pages: Pages) -> None:
        if self._waiting:
            self._wasted += int(self._unused[pages].sum())
            self._unused[pages] = False

    def needed(self, pages: Pages, late: int = 0, misses: int = 0) -> None:
        """A task needs its pages, of which some are still coming, and some were not even begun."""
        self._late += late
        self._misses += misses
        if self._waiting:
            self._hits += int(self._unused[pages].sum())
            self._unused[pages] = False

    @property
    def _waiting(self) -> bool:
        """Whether any prefetched page is there that no task has needed yet."""
        return self._loaded > self._hits + self._wasted

"""Which pages are in which slots, and which of them may go: the page table and its policy. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.runtime.switch_plan import NO_PAGES, Pages, SwitchPlan

ABSENT = -1

GONE = -(1 << 62)
"""In place of the number of a task's holders."""


@dataclass(frozen=True, eq=False)
class Occupancy:
    """A copy of what is where, for plans.

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


class BlockManager:
    """Residency of pages in the slots of an arena.

    Not thread-safe: its owner holds a lock around every call. A page is *absent*, *loading* (a slot is reserved for it)
    or *resident* (the page table names its slot; its bytes have been checked by then). Tasks are numbers; one that is
    *held* keeps its pages from eviction, those that are resident and those that will be. Holding a resident task takes
    a time that doesn't depend on its pages.

    Attributes:
        page_table: int32 [pages], page index → slot, `ABSENT` where absent. Updated in place, never replaced: kernels
            hold its address.
        reloads: pages loaded that had been resident before.
    """

    def __init__(
        self, needs: Sequence[Pages], pages: int, slots: int, capacity: int | None = None, residence: int = 0
    ) -> None:
        """Nothing is resident.

        Args:
            needs: of each task the pages, ascending.
            pages: numbers that pages can have.
            slots: that may be used.
            capacity: slots that the arena has; ``slots`` if None.
            residence: calls of `hold` after a page came during which `plan` evicts it only if nothing else can go.
        """
        capacity = slots if capacity is None else capacity
        self.page_table: npt.NDArray[np.int32] = np.full(pages, ABSENT, np.int32)
        self._page_of_slot = np.full(capacity, ABSENT, np.int64)
        self._free = list(range(slots - 1, -1, -1))
        self._retired = list(range(capacity - 1, slots - 1, -1))
        self._reserved = np.full(pages, ABSENT, np.int32)  # page -> slot, while it is being loaded
        self._needs = list(needs)
        self._needed_by: npt.NDArray[np.bool_] = np.zeros((pages, len(needs)), bool)
        for task, need in enumerate(needs):
            self._needed_by[need, task] = True
        self._missing = np.array([len(need) for need in needs], np.int64)
        self._holders: npt.NDArray[np.int64] = np.zeros(len(needs), np.int64)
        self._last_use = np.zeros(len(needs), np.int64)
        self._uses = 0
        self._residence = residence
        self._came = np.zeros(pages, np.int64)  # when a page did, by count of uses
        self._seen = np.zeros(pages, bool)
        self._group()
        self.reloads = 0

    @property
    def slots(self) -> int:
        """Slots that may be used."""
        return len(self._page_of_slot) - len(self._retired)

    @property
    def capacity(self) -> int:
        """Slots in the arena."""
        return len(self._page_of_slot)

    @property
    def tasks(self) -> int:
        """Numbers of tasks, also of those that were removed."""
        return len(self._needs)

    def resident(self) -> Pages:
        """Pages in the arena, ascending."""
        return np.flatnonzero(self.page_table != ABSENT)

    def needs(self, task: int) -> Pages:
        """A task's pages, ascending."""
        return self._needs[task]

    def needed_together(self, tasks: Sequence[int]) -> int:
        """Pages that at least one of these tasks needs."""
        return int(np.any(self._needed_by[:, tasks], axis=1).sum())

    def is_resident(self, task: int) -> bool:
        """Whether all of a task's pages are in the arena."""
        return bool(self._missing[task] == 0)

    def missing(self, task: int) -> Pages:
        """The differential set: a task's pages that are not resident, in order."""
        need = self._needs[task]
        missing: Pages = need[self.page_table[need] == ABSENT]
        return missing

    def hold(self, task: int) -> None:
        """Keep a task's pages from eviction until as many `release` calls have followed; counts as a use."""
        if self.is_gone(task):
            raise ValueError("expected a task that wasn't removed")
        self._holders[task] += 1
        self._uses += 1
        self._last_use[task] = self._uses

    def release(self, task: int) -> None:
        """Undo one `hold`."""
        if self._holders[task] <= 0:
            raise ValueError("expected a task that is held")
        self._holders[task] -= 1

    def is_held(self, task: int) -> bool:
        """Whether anybody holds a task."""
        return bool(self._holders[task] > 0)

    def locked(self, but_one_hold_of: Sequence[int] = ()) -> Pages:
        """Pages of held tasks, ascending: these may not be evicted; as if each of some tasks were held once less."""
        return np.flatnonzero(self._locked_by(self._holders_without(but_one_hold_of)))

    def plan(
        self, task: int, leaving: int | None = None, reuse: npt.NDArray[np.floating] | None = None
    ) -> SwitchPlan | None:
        """How to make all of a task's pages resident; None if that can't be done.

        Args:
            task: the next one.
            leaving: the task that is being left, held once for that, given up only if it must be.
            reuse: [tasks], expected uses of each in the near future. What tasks will use least goes first, and among
                equals what was used least recently; what has just come goes last.
        """
        missing = self.missing(task)
        coming = self._reserved[missing] != ABSENT
        loading, absent = missing[coming], missing[~coming]
        spare = self._evictable(reuse, but=task)
        now = min(len(absent), len(self._free) + len(spare))
        evict = spare[: max(0, now - len(self._free))]
        plan = SwitchPlan(evict, loading, absent[:now], absent[now:])
        return plan if len(plan.commit) <= len(self._freed_by_leaving(task, leaving)) else None

    def occupancy(self, current: int | None = None) -> Occupancy:
        """What is where; the pages of a task that ran last are locked like those of held ones."""
        locked = self._locked_by(self._holders)
        if current is not None:
            locked |= self._needed_by[:, current]
        return Occupancy(self.page_table != ABSENT, self._reserved != ABSENT, locked, len(self._free))

    def worth(self, tasks: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """What each page is worth [pages]: the sum over the tasks that need it, given what each task is [tasks]."""
        worth: npt.NDArray[np.float64] = (self._signatures @ tasks)[self._signature_of]
        return worth

    @property
    def differential_pages(self) -> float:
        """What a task needs that another one lacks, in pages: the mean over all ordered pairs of tasks."""
        present = np.flatnonzero([len(need) for need in self._needs])
        if len(present) < 2:
            return 0.0
        tasks = self._signatures[:, present]
        shared = tasks.T @ (np.bincount(self._signature_of, minlength=len(tasks))[:, None] * tasks)
        pairs = len(present) * (len(present) - 1)
        return float((len(present) * np.trace(shared) - shared.sum()) / pairs)

    def evict(self, pages: Pages) -> None:
        """Give up resident pages that no held task needs; their slots are free at once."""
        if self._locked_by(self._holders)[pages].any():
            raise ValueError("expected pages that no held task needs")
        slots = self.page_table[pages]
        if (slots == ABSENT).any():
            raise ValueError("expected resident pages")
        self.page_table[pages] = ABSENT
        self._page_of_slot[slots] = ABSENT
        self._missing += self._needed_by[pages].sum(0)
        self._free.extend(int(slot) for slot in slots[::-1])

    def evictable(self) -> Pages:
        """Resident pages that no held task needs, least recently used first."""
        return self._evictable()

    def reserve(self, pages: Pages) -> dict[int, int]:
        """Take a free slot for each absent page; absent they stay until `publish`."""
        absent = (self.page_table[pages] == ABSENT).all() and (self._reserved[pages] == ABSENT).all()
        if not absent or len(pages) > len(self._free):
            raise ValueError("expected absent pages and a free slot for each")
        slots = [self._free.pop() for _ in pages]
        self._reserved[pages] = slots
        return dict(zip(pages.tolist(), slots, strict=True))

    def publish(self, pages: Iterable[int]) -> None:
        """The pages' bytes are in their reserved slots and checked: make them resident."""
        came, slots = self._take_reserved(pages)
        self._page_of_slot[slots] = came
        self.page_table[came] = slots
        self._came[came] = self._uses
        self._missing -= self._needed_by[came].sum(0)
        self.reloads += int(self._seen[came].sum())
        self._seen[came] = True

    def cancel(self, pages: Iterable[int]) -> None:
        """Give back the slots of loading pages that won't come."""
        self._free.extend(self._take_reserved(pages)[1].tolist())

    def retire(self, count: int) -> list[int]:
        """Use fewer slots; those that went, all of them free before."""
        if count > len(self._free):
            raise ValueError("expected as many free slots")
        gone = sorted(self._free, reverse=True)[:count]
        self._free = sorted(set(self._free) - set(gone), reverse=True)
        self._retired.extend(gone)
        return gone

    def restore(self, count: int) -> list[int]:
        """Use slots again that were retired; which these are."""
        back = sorted(self._retired)[:count]
        self._retired = sorted(set(self._retired) - set(back), reverse=True)
        self._free[:0] = reversed(back)
        return back

    def add_task(self, need: Pages) -> int:
        """The number of a task that came later; it needs these pages, ascending."""
        self._needs.append(need)
        column = np.zeros((len(self.page_table), 1), bool)
        column[need] = True
        self._needed_by = np.hstack([self._needed_by, column])
        self._missing = np.append(self._missing, (self.page_table[need] == ABSENT).sum())
        self._holders = np.append(self._holders, 0)
        self._last_use = np.append(self._last_use, 0)
        self._group()
        return len(self._needs) - 1

    def remove_task(self, task: int) -> None:
        """A task that nobody holds needs nothing any more, and can't be held again; its number stays unused."""
        if self.is_held(task):
            raise ValueError("expected a task that isn't held")
        self._needs[task] = NO_PAGES
        self._needed_by[:, task] = False
        self._missing[task] = 0
        self._holders[task] = GONE
        self._group()

    def is_gone(self, task: int) -> bool:
        """Whether a task has been removed."""
        return bool(self._holders[task] == GONE)

    @property
    def free(self) -> int:
        """Slots that nothing is in or on its way to."""
        return len(self._free)

    @property
    def loading(self) -> int:
        """Pages that a slot is reserved for."""
        return int((self._reserved != ABSENT).sum())

    def check_integrity(self) -> None:
        """Every slot is free, reserved, retired or names the page that names it; every count is right.

        Raises:
            AssertionError: a bug of ours.
        """
        pages = self.resident()
        slots = self.page_table[pages]
        assert len(np.unique(slots)) == len(slots), "two pages in one slot"
        assert (self._page_of_slot[slots] == pages).all(), "a slot names another page"
        assert (np.flatnonzero(self._page_of_slot != ABSENT) == np.sort(slots)).all(), "a slot names an absent page"
        coming = np.flatnonzero(self._reserved != ABSENT)
        every = sorted([*self._free, *self._retired, *self._reserved[coming].tolist(), *slots.tolist()])
        assert every == list(range(self.capacity)), "a slot was lost or used twice"
        assert not len(np.intersect1d(coming, pages)), "a resident page is being loaded"
        assert ((self._holders >= 0) | (self._holders == GONE)).all(), "more releases than holds"
        assert self._missing.tolist() == [len(self.missing(task)) for task in range(len(self._needs))], "a wrong count"

    def _take_reserved(self, pages: Iterable[int]) -> tuple[Pages, npt.NDArray[np.int32]]:
        """Pages that were being loaded, and the slots that were reserved for them."""
        loading = np.fromiter(pages, np.int64)
        slots = self._reserved[loading]
        if (slots == ABSENT).any():
            raise ValueError("expected pages that a slot is reserved for")
        self._reserved[loading] = ABSENT
        return loading, slots

    def _group(self) -> None:
        """Many pages have the same tasks: `worth` is summed once for each set of tasks."""
        packed = np.packbits(self._needed_by, axis=1)
        rows = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1])))[:, 0]
        _, first, self._signature_of = np.unique(rows, return_index=True, return_inverse=True)
        self._signatures = self._needed_by[first].astype(np.float64)

    def _holders_without(self, leaving: Sequence[int]) -> npt.NDArray[np.int64]:
        holders: npt.NDArray[np.int64] = self._holders.copy()
        for task in leaving:
            holders[task] -= 1
        return holders

    def _locked_by(self, holders: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        locked: npt.NDArray[np.bool_] = np.any(self._needed_by[:, holders > 0], axis=1)
        return locked

    def _freed_by_leaving(self, task: int, leaving: int | None) -> Pages:
        """Resident pages that can go only if the task that is being left is given up."""
        if leaving is None:
            return NO_PAGES
        kept = self._locked_by(self._holders_without([leaving])) | self._needed_by[:, task]
        freed: Pages = np.flatnonzero(self._needed_by[:, leaving] & (self.page_table != ABSENT) & ~kept)
        return freed

    def _evictable(self, reuse: npt.NDArray[np.floating] | None = None, but: int | None = None) -> Pages:
        keep = self._locked_by(self._holders)
        if but is not None:
            keep |= self._needed_by[:, but]
        spare = np.flatnonzero((self.page_table != ABSENT) & ~keep)
        last_use = (self._signatures * self._last_use).max(1, initial=0)[self._signature_of[spare]]
        new = (self._residence > 0) & (self._uses <= self._came[spare] + self._residence)
        order = np.lexsort((last_use, new) if reuse is None else (last_use, self.worth(reuse)[spare], new))
        ordered: Pages = spare[order]
        return ordered

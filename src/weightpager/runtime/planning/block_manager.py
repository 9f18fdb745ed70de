"""Which pages are in the arena, and which of them may go: who holds them, and plans of switches. Does no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from weightpager.runtime.planning.pages import ABSENT, NO_PAGES, Occupancy, Pages, Slots, SwitchPlan, TaskPages, Uses


class EvictionOrder:
    """What tasks will use least goes first, and among equals what was used least recently.

    Not thread-safe. Time is counted in uses of tasks.
    """

    def __init__(self, needs: TaskPages) -> None:
        """Nothing was used yet.

        Args:
            needs: of the tasks; `add_task` tells of each that came later.
        """
        self._needs = needs
        self._uses = 0
        self._last_use = np.zeros(needs.tasks, np.int64)

    def used(self, task: int) -> None:
        self._uses += 1
        self._last_use[task] = self._uses

    def add_task(self) -> None:
        self._last_use = np.append(self._last_use, 0)

    def sort(self, pages: Pages, expected_uses: Uses | None) -> Pages:
        """Resident pages in the order in which to give them up.

        Args:
            pages: ascending.
            expected_uses: of each task; None goes by recency alone.
        """
        last_use = self._needs.greatest(self._last_use, pages)
        order = np.lexsort((last_use,) if expected_uses is None else (last_use, self._needs.sums(expected_uses)[pages]))
        ordered: Pages = pages[order]
        return ordered


GONE = -(1 << 62)
"""The number of holders of a task that was removed."""


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
        version: counts what may make an earlier prefetch plan wrong: it rises whenever a task is held, whenever pages
            or slots come or go, and when numbers may name other pages.
    """

    def __init__(
        self, needs: Sequence[Pages], pages: int, slots: int, capacity: int | None = None, *, together: int = 1
    ) -> None:
        """Nothing is resident.

        Args:
            needs: of each task the pages, ascending.
            pages: numbers that pages can have.
            slots: how many slots may be used.
            capacity: how many the arena has; ``slots`` if None.
            together: how many the arena gives back together, as `PageArena` says.
        """
        self._needs = TaskPages(needs, pages)
        self._slots = Slots(pages, slots, slots if capacity is None else capacity, together)
        self._order = EvictionOrder(self._needs)
        self._missing = np.array([len(need) for need in needs], np.int64)  # of each task's pages, how many
        self._holders = [0] * len(needs)
        self._seen = np.zeros(pages, bool)
        self.page_table = self._slots.page_table
        self.reloads = 0
        self.version = 0

    @property
    def slots(self) -> int:
        """Slots that may be used."""
        return self._slots.usable

    @property
    def free(self) -> int:
        """Slots that nothing is in or on its way to."""
        return self._slots.free

    @property
    def ever_loaded(self) -> int:
        """Pages that have been resident, or are."""
        return int(np.count_nonzero(self._seen))

    @property
    def loading(self) -> int:
        """How many pages have a slot reserved."""
        return int(np.count_nonzero(self._slots.reserved != ABSENT))

    def reserved(self) -> Pages:
        """Pages that have a slot reserved, ascending."""
        return _where(self._slots.reserved != ABSENT)

    def resident(self) -> Pages:
        """Pages in the arena, ascending."""
        return _where(self.page_table != ABSENT)

    @property
    def tasks(self) -> int:
        """Numbers of tasks, also of those that were removed."""
        return self._needs.tasks

    def needs(self, task: int) -> Pages:
        """A task's pages, ascending."""
        return self._needs.of(task)

    def needed_together(self, tasks: Sequence[int]) -> int:
        """How many pages at least one of these tasks needs."""
        return int(self._needs.needed_by_any(tasks).sum())

    @property
    def differential_pages(self) -> float:
        """What a task needs that another one lacks, in pages: the mean over all ordered pairs of tasks."""
        return self._needs.differential

    def is_resident(self, task: int) -> bool:
        return bool(self._missing[task] == 0)

    def missing(self, task: int) -> Pages:
        """The differential set: a task's pages that are not resident, ascending."""
        need = self._needs.of(task)
        missing: Pages = need[self.page_table[need] == ABSENT]
        return missing

    def missing_count(self, task: int) -> int:
        """How many of a task's pages are not resident. The time that it takes doesn't depend on them."""
        return int(self._missing[task])

    def hold(self, task: int) -> None:
        """Keep a task's pages from eviction until as many `release` calls have followed. Counts as a use."""
        if self.is_gone(task):
            raise ValueError("expected a task that wasn't removed")
        self._order.used(task)
        self.version += 1
        self._holders[task] += 1

    def release(self, task: int) -> None:
        if self._holders[task] <= 0:
            raise ValueError("expected a task that is held")
        self._holders[task] -= 1

    def is_held(self, task: int) -> bool:
        return self._holders[task] > 0

    def locked(self) -> Pages:
        """Pages of held tasks, ascending. They must stay."""
        return np.flatnonzero(self._is_locked())

    def pages_in_use(self, task: int, previous: int | None = None) -> int:
        """How many pages a task and those that are held need, as if ``previous`` had been released once."""
        return int(np.count_nonzero(self._is_kept(task, previous)))

    def plan(
        self, task: int, previous: int | None = None, ask_uses: Callable[[], Uses] | None = None
    ) -> SwitchPlan | None:
        """How to make all of a task's pages resident; None if that can't be done.

        Args:
            task: the next one.
            previous: the task that is left for it. It is held once, and given up only if it must be.
            ask_uses: gives the expected uses of each task. It is asked only where pages must go. What tasks will
                use least goes first, and among equals what was used least recently.
        """
        missing = self.missing(task)
        coming = self._slots.reserved[missing] != ABSENT
        loading, absent = missing[coming], missing[~coming]
        spare, freed = self._may_go(task, previous)
        now = min(len(absent), self.free + len(spare))
        going, later = max(0, now - self.free), len(absent) - now
        if later > len(freed):
            return None
        return SwitchPlan(
            evict=self._first_to_go(spare, going, ask_uses),
            loading=loading,
            prepare=absent[:now],
            commit=absent[now:],
            evict_previous=self._first_to_go(freed, later, ask_uses),
        )

    def has_room(self, task: int, previous: int | None = None) -> bool:
        """Whether `plan` would find room for a task. Valid only while no page is loading."""
        gone = self.page_table != ABSENT
        gone &= ~self._is_kept(task, previous)
        return bool(self._missing[task] <= self.free + np.count_nonzero(gone))

    def occupancy(self, current: int | None = None) -> Occupancy:
        """What is where. The pages of a task that ran last are locked like those of held ones."""
        locked = self._is_locked()
        if current is not None:
            locked |= self._needs.needed_by(current)
        return Occupancy(self.page_table != ABSENT, self._slots.reserved != ABSENT, locked, self.free)

    def worth(self, tasks: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Value of each page [pages]: the sum of the values [tasks] of the tasks that need it."""
        return self._needs.sums(tasks)

    def evict(self, pages: Pages) -> None:
        """Give up resident pages that no held task needs. Their slots are free at once."""
        if any(self._needs.needed_by(task)[pages].any() for task in self._held()):
            raise ValueError("expected pages that no held task needs")
        self._missing += self._needs.count(pages)
        self._slots.evict(pages)
        self.version += 1

    def evictable(self) -> Pages:
        """Resident pages that no held task needs, least recently used first."""
        return self._order.sort(self._spare(), None)

    def reserve(self, pages: Pages) -> npt.NDArray[np.int32]:
        """Take a free slot for each absent page. Returns them, int32 [pages]. The pages stay absent until `publish`."""
        slots = self._slots.reserve(pages)
        self.version += 1
        return slots

    def publish(self, pages: Iterable[int]) -> None:
        """The pages' bytes are in their reserved slots and checked: make them resident."""
        came = self._slots.publish(pages)
        self._missing -= self._needs.count(came)
        self.reloads += int(self._seen[came].sum())
        self._seen[came] = True

    def cancel(self, pages: Iterable[int]) -> None:
        """Give back the slots of loading pages that won't come."""
        self._slots.cancel(pages)

    def to_retire(self, count: int, expected_uses: Uses | None = None) -> tuple[list[int], Pages]:
        """Choose so many slots. Returns their numbers, and the pages that must go from them before `retire`.

        What tasks will use least goes first; None goes by recency alone.
        """
        slots = self._slots.to_retire(count, self._order.sort(self._spare(), expected_uses))
        return slots, self._slots.pages_in(slots)

    def retire(self, slots: Sequence[int]) -> None:
        """Use free slots no more."""
        self.version += 1
        self._slots.retire(slots)

    def restore(self, count: int) -> list[int]:
        """Use so many retired slots again. Returns their numbers."""
        self.version += 1
        return self._slots.restore(count)

    def add_task(self, need: Pages) -> int:
        """Add a task that needs these pages, ascending. Returns its number."""
        number = self._needs.add(need)
        self._missing = np.append(self._missing, (self.page_table[need] == ABSENT).sum())
        self._holders.append(0)
        self._order.add_task()
        return number

    def remove_task(self, task: int) -> None:
        """A task that nobody holds needs nothing any more, and can't be held again. Its number stays unused."""
        if self.is_held(task):
            raise ValueError("expected a task that isn't held")
        self._needs.remove(task)
        self._missing[task] = 0
        self._holders[task] = GONE

    def keep_numbers(self, kept: Pages) -> None:
        """Numbers other than these may name other pages from now on. What was known of them is forgotten."""
        other = np.ones(len(self.page_table), bool)
        other[kept] = False
        if (self.page_table[other] != ABSENT).any() or (self._slots.reserved[other] != ABSENT).any():
            raise ValueError("expected to keep the numbers of pages that are resident or loading")
        self._seen[other] = False
        self.version += 1

    def is_gone(self, task: int) -> bool:
        return self._holders[task] == GONE

    def check_integrity(self) -> None:
        """Every slot is free, reserved, retired or names the page that names it. Every count is right.

        Raises:
            AssertionError: a bug of ours.
        """
        self._slots.check_integrity()
        assert all(count >= 0 or count == GONE for count in self._holders), "more releases than holds"
        assert self._missing.tolist() == [len(self.missing(task)) for task in range(self.tasks)], "a wrong count"

    def _is_locked(self, released: Sequence[int] = ()) -> npt.NDArray[np.bool_]:
        """Whether a held task needs each page [pages], as if each of ``released`` had been released once."""
        return self._needs.needed_by_any(self._held(released))

    def _held(self, released: Sequence[int] = ()) -> list[int]:
        """Tasks that are held, as if each of ``released`` had been released once."""
        return [task for task, count in enumerate(self._holders) if count > released.count(task)]

    def _first_to_go(self, spare: Pages, count: int, ask_uses: Callable[[], Uses] | None) -> Pages:
        """Choose so many of these resident pages. Their order is asked for only where some can stay."""
        if count in (0, len(spare)):
            return spare[:count]
        return self._order.sort(spare, ask_uses and ask_uses())[:count]

    def _may_go(self, task: int, previous: int | None) -> tuple[Pages, Pages]:
        """Resident pages that can go for a task: those that no held task needs, and those of ``previous`` alone."""
        idle = _where((self.page_table != ABSENT) & ~self._is_kept(task, previous))
        if previous is None or not self.is_held(previous):
            return idle, NO_PAGES
        of_previous = self._needs.needed_by(previous)[idle]
        return idle[~of_previous], idle[of_previous]

    def _is_kept(self, task: int, previous: int | None) -> npt.NDArray[np.bool_]:
        """Whether ``task`` or a held task needs each page [pages], as if ``previous`` had been released once."""
        kept = self._is_locked(() if previous is None else (previous,))
        kept |= self._needs.needed_by(task)
        return kept

    def _spare(self) -> Pages:
        return _where((self.page_table != ABSENT) & ~self._is_locked())


def _where(chosen: npt.NDArray[np.bool_]) -> Pages:
    """`numpy.flatnonzero` without what it does for arrays of other shapes."""
    found: Pages = chosen.nonzero()[0]
    return found

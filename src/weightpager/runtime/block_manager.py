"""Which pages are in which slots, and which of them may go: the page table and its policy. Does no I/O."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.runtime.switch_plan import Pages, SwitchPlan

ABSENT = -1

_NONE: Pages = np.zeros(0, np.int64)


class BlockManager:
    """Residency of pages in the slots of an arena.

    Not thread-safe: the engine holds its lock around every call. A page is *resident* when the page table names its
    slot; its bytes have been checked by then. Locks count holders and apply to pages whether resident or not, so that
    a task's pages can be locked before they are loaded.

    Attributes:
        page_table: int32 [pages], page index → slot, `ABSENT` where absent. Updated in place, never replaced: kernels
            hold its address.
    """

    def __init__(self, pages: int, slots: int) -> None:
        self.page_table: npt.NDArray[np.int32] = np.full(pages, ABSENT, np.int32)
        self._page_of_slot = np.full(slots, ABSENT, np.int64)
        self._free = list(range(slots - 1, -1, -1))
        self._reserved: dict[int, int] = {}  # page -> slot, while it is being loaded
        self._locks = np.zeros(pages, np.int32)
        self._used = np.zeros(pages, np.int64)
        self._clock = 0

    @property
    def slots(self) -> int:
        """Slots in the arena."""
        return len(self._page_of_slot)

    def resident(self) -> Pages:
        """Pages in the arena, ascending."""
        return np.flatnonzero(self.page_table != ABSENT)

    def missing(self, need: Pages) -> Pages:
        """The differential set: pages of ``need`` that are not resident, in order."""
        missing: Pages = need[self.page_table[need] == ABSENT]
        return missing

    def locked(self, beside: Pages = _NONE) -> Pages:
        """Pages that may not be evicted, ascending; not those of ``beside`` that only its one holder locks."""
        others = self._locks.copy()
        others[beside] -= 1
        return np.flatnonzero(others > 0)

    def lock(self, pages: Pages) -> None:
        """Keep pages from eviction until as many `unlock` calls have followed; counts as a use."""
        self._locks[pages] += 1
        self.touch(pages)

    def unlock(self, pages: Pages) -> None:
        """Undo one `lock`."""
        if (self._locks[pages] <= 0).any():
            raise ValueError("expected locked pages")
        self._locks[pages] -= 1

    def touch(self, pages: Pages) -> None:
        """Note a use, for least-recently-used eviction."""
        self._clock += 1
        self._used[pages] = self._clock

    def plan(self, need: Pages, release: Pages = _NONE) -> SwitchPlan | None:
        """How to make all of ``need`` resident; None if that can't be done.

        Args:
            need: pages of the next task, ascending.
            release: pages of the task that is being left, each locked once by it, given up only if they must be.
        """
        missing = self.missing(need)
        spare = self._evictable(need)
        room = len(self._free) + len(spare)
        now = min(len(missing), room)
        evict = spare[: max(0, now - len(self._free))]
        if now == len(missing):
            return SwitchPlan(evict, missing, _NONE, _NONE)
        own = release[self._locks[release] == 1]
        given_up = np.setdiff1d(own[self.page_table[own] != ABSENT], need)
        rest = len(missing) - now
        if len(given_up) < rest:
            return None
        oldest = given_up[np.argsort(self._used[given_up], kind="stable")]
        return SwitchPlan(evict, missing[:now], np.sort(oldest[:rest]), missing[now:])

    def evict(self, pages: Pages) -> None:
        """Give up resident, unlocked pages; their slots are free at once."""
        if (self._locks[pages] > 0).any():
            raise ValueError("expected unlocked pages")
        slots = self.page_table[pages]
        if (slots == ABSENT).any():
            raise ValueError("expected resident pages")
        self.page_table[pages] = ABSENT
        self._page_of_slot[slots] = ABSENT
        self._free.extend(int(slot) for slot in slots)

    def evictable(self) -> Pages:
        """Resident pages that nobody has locked, least recently used first."""
        return self._evictable(_NONE)

    def reserve(self, pages: Pages) -> dict[int, int]:
        """Take a free slot for each absent page; absent they stay until `publish`."""
        if (self.page_table[pages] != ABSENT).any() or len(pages) > len(self._free):
            raise ValueError("expected absent pages and a free slot for each")
        taken = {int(page): self._free.pop() for page in pages}
        self._reserved.update(taken)
        return taken

    def publish(self, page: int) -> None:
        """The page's bytes are in its reserved slot and checked: make it resident."""
        slot = self._reserved.pop(page)
        self._page_of_slot[slot] = page
        self.page_table[page] = slot

    def cancel_reserved(self) -> None:
        """Give back the slots of all pages that were reserved and not published: their loads have failed."""
        while self._reserved:
            self._free.append(self._reserved.popitem()[1])

    def check_integrity(self) -> None:
        """Every slot is free, reserved or names the page that names it.

        Raises:
            AssertionError: a bug of ours.
        """
        pages = self.resident()
        slots = self.page_table[pages]
        assert len(np.unique(slots)) == len(slots), "two pages in one slot"
        assert (self._page_of_slot[slots] == pages).all(), "a slot names another page"
        assert (np.flatnonzero(self._page_of_slot != ABSENT) == np.sort(slots)).all(), "a slot names an absent page"
        every = sorted([*self._free, *self._reserved.values(), *slots.tolist()])
        assert every == list(range(self.slots)), "a slot was lost or used twice"
        assert (self._locks >= 0).all(), "more unlocks than locks"

    def _evictable(self, need: Pages) -> Pages:
        keep = self._locks > 0
        keep[need] = True
        spare = np.flatnonzero((self.page_table != ABSENT) & ~keep)
        return spare[np.argsort(self._used[spare], kind="stable")]

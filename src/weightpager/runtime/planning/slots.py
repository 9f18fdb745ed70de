"""Which page is in which slot of an arena: the page table, and all slots that it doesn't name."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from weightpager.runtime.planning.plans import Pages

ABSENT = -1


class Slots:
    """The slots of an arena. Each is free, reserved for a page that is being loaded, has a page, or is retired.

    Not thread-safe. It knows nothing of tasks.

    Attributes:
        page_table: int32 [pages], page index → slot, `ABSENT` where absent. Updated in place, never replaced.
        reserved: int32 [pages], page index → slot while the page is being loaded, `ABSENT` otherwise.
    """

    def __init__(self, pages: int, usable: int, capacity: int) -> None:
        """All are free, or retired.

        Args:
            pages: numbers that pages can have.
            usable: slots that may be used.
            capacity: slots that there are.
        """
        self.page_table: npt.NDArray[np.int32] = np.full(pages, ABSENT, np.int32)
        self.reserved: npt.NDArray[np.int32] = np.full(pages, ABSENT, np.int32)
        self._page_of_slot = np.full(capacity, ABSENT, np.int64)
        self._free = list(range(usable - 1, -1, -1))
        self._retired = list(range(capacity - 1, usable - 1, -1))

    @property
    def capacity(self) -> int:
        """Slots that there are."""
        return len(self._page_of_slot)

    @property
    def usable(self) -> int:
        """Slots that may be used."""
        return len(self._page_of_slot) - len(self._retired)

    @property
    def free(self) -> int:
        """Slots that nothing is in or on its way to."""
        return len(self._free)

    def reserve(self, pages: Pages) -> npt.NDArray[np.int32]:
        """Take a free slot for each absent page. Returns them, int32 [pages]. The pages stay absent until `publish`."""
        absent = (self.page_table[pages] == ABSENT).all() and (self.reserved[pages] == ABSENT).all()
        if not absent or len(pages) > len(self._free):
            raise ValueError("expected absent pages and a free slot for each")
        rest = len(self._free) - len(pages)
        slots = np.array(self._free[rest:][::-1], np.int32)
        del self._free[rest:]  # first: should Ctrl-C come between, no slot is given away twice
        self.reserved[pages] = slots
        return slots

    def publish(self, pages: Iterable[int]) -> Pages:
        """Pages are in their reserved slots. Returns the pages."""
        came, slots = self._take_reserved(pages)
        self._page_of_slot[slots] = came
        self.page_table[came] = slots
        return came

    def cancel(self, pages: Iterable[int]) -> None:
        """Give back the slots of loading pages that won't come."""
        self._free.extend(self._take_reserved(pages)[1].tolist())

    def evict(self, pages: Pages) -> None:
        """Give up resident pages. Their slots are free at once."""
        slots = self.page_table[pages]
        if (slots == ABSENT).any():
            raise ValueError("expected resident pages")
        freed = slots[::-1].tolist()  # the rest takes no time that depends on the pages: Ctrl-C hardly comes between
        self.page_table[pages] = ABSENT
        self._page_of_slot[slots] = ABSENT
        self._free.extend(freed)

    def retire(self, count: int) -> list[int]:
        """Retire so many free slots. Returns their numbers."""
        if count > len(self._free):
            raise ValueError("expected as many free slots")
        gone = sorted(self._free, reverse=True)[:count]
        self._free = sorted(set(self._free) - set(gone), reverse=True)
        self._retired.extend(gone)
        return gone

    def restore(self, count: int) -> list[int]:
        """Use so many retired slots again. Returns their numbers."""
        back = sorted(self._retired)[:count]
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

    def _take_reserved(self, pages: Iterable[int]) -> tuple[Pages, npt.NDArray[np.int32]]:
        """Pages that were being loaded, and the slots that were reserved for them."""
        loading: Pages = np.asarray(pages if isinstance(pages, np.ndarray) else list(pages), np.int64)
        slots = self.reserved[loading]
        if (slots == ABSENT).any():
            raise ValueError("expected pages that a slot is reserved for")
        self.reserved[loading] = ABSENT
        return loading, slots

"""Which page is in which slot of an arena: the page table, and all slots that it doesn't name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

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
        """Give back the slots of loading pages that won't come."""
        self._free.extend(self._take_reserved(pages)[1].tolist())

    def evict(self, pages: Pages) -> None:
        """Give up resident pages. Their slots are free at once."""
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
        """The pages that are in these slots, in their order."""
        found = self._page_of_slot[list(slots)]
        pages: Pages = found[found != ABSENT]
        return pages

    def retire(self, slots: Sequence[int]) -> None:
        """Retire free slots."""
        gone = set(slots)
        if not gone <= set(self._free):
            raise ValueError("expected free slots")
        self._free = sorted(set(self._free) - gone, reverse=True)
        self._retired.extend(slots)

    def restore(self, count: int) -> list[int]:
        """Use so many retired slots again, those of groups in use first. Returns their numbers."""
        unused = self._in_groups(np.logical_and, self._is_retired())
        back = sorted(self._retired, key=lambda slot: (unused[slot], slot))[:count]
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
        """Whether each slot is retired [capacity]."""
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

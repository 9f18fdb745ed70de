"""`RowMemory`: which of a table's rows are in memory, where, and which go for others."""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.kernels.rows import Wide, check_wide, is_bfloat16
from weightpager.machine.storage import address_space
from weightpager.runtime.paging.load import own_read_error
from weightpager.runtime.rows.row_pages import AT_ONCE, RowReads
from weightpager.store import most_pages

Ids = npt.NDArray[np.int64]

_PINNED = 2
"""One of so many slots belongs to the rows that are used most, which never go."""

_TRIAL = 5
"""One of so many other slots is for rows that were looked up once since they came: they go before all others do."""

_ONCE, _AGAIN, _STAYS = 0, 1, 2

_LAST_TICK = np.iinfo(np.uint32).max

_SLOTS, _FILLED, _TICK = 0, 1, 2


class RowMemory:
    """Slots for a table's stored rows. Whoever calls makes sure that one thread at a time does.

    Native code works on the same arrays: ``csrc/rows/row_memory.cpp`` does what `look_up` and `insert` do.

    Half of the slots are for the rows of the first places, which were used the most when the bundle was compiled. The
    others are a segmented LRU: rows that were looked up once since they came go first, as far as they are more than a
    fifth; then those that were used longest ago.

    Attributes:
        row_bytes: bytes of a stored row.
        stored: uint8 [bytes], what is in the slots, one after the other. Memory is taken when it is filled.
    """

    def __init__(self, places: npt.NDArray[np.unsignedinteger[Any]], row_bytes: int, slots: int) -> None:
        """Nothing is in memory.

        Args:
            places: [rows], each row's place in the order of use.
            row_bytes: bytes of a stored row.
            slots: rows that may be in memory, as many as there are at most.

        Raises:
            OSError: the machine refuses address space.
        """
        rows = len(places)
        self.row_bytes = row_bytes
        self._state = np.array([min(slots, rows), 0, 0], np.int64)
        self._places = np.ascontiguousarray(places)
        self._memory, self._capacity = _reserve(rows, self.slots, row_bytes)
        self.stored = np.frombuffer(self._memory, np.uint8, self._capacity * row_bytes)
        self._slot_of = np.full(rows, -1, np.int32)
        self._row_in = np.zeros(self._capacity, np.int32)
        self._last_use = np.zeros(self._capacity, np.uint32)
        self._stay = np.zeros(self._capacity, np.uint8)

    def __len__(self) -> int:
        return self._filled

    @property
    def slots(self) -> int:
        """Rows that may be in memory."""
        return int(self._state[_SLOTS])

    @property
    def _filled(self) -> int:
        return int(self._state[_FILLED])

    def addresses(self) -> dict[str, int]:
        """What native code needs to know. The arrays stay where they are."""
        return {
            "places": self._places.ctypes.data,
            "wide": self._places.itemsize == 4,
            "rows": len(self._places),
            "row_bytes": self.row_bytes,
            "capacity": self._capacity,
            "stored": self.stored.ctypes.data,
            "slot_of": self._slot_of.ctypes.data,
            "row_in": self._row_in.ctypes.data,
            "last_use": self._last_use.ctypes.data,
            "stay": self._stay.ctypes.data,
            "state": self._state.ctypes.data,
        }

    def absent(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which of these rows aren't in memory."""
        return np.asarray(self._slot_of[ids] < 0)

    def look_up(self, ids: Ids) -> Ids:
        """The slots of these rows, −1 where one is absent. The rows count as used."""
        slots = self._slot_of[ids].astype(np.int64)
        used = slots[slots >= 0]
        self._begin_uses(len(ids))
        self._last_use[used] = self._ticks(len(used))  # of a row that occurs twice the last one stays
        self._stay[used] = np.maximum(self._stay[used], _AGAIN)
        return slots

    def insert(self, ids: Ids, stored: npt.NDArray[np.uint8], *, trial: bool = True) -> None:
        """Take rows in, in the place of others if there is no room.

        Rows that are there already are left out, and the last ones of too many.

        Args:
            ids: int64 [n], each once, the most wanted first.
            stored: uint8 [n, row_bytes].
            trial: whether they were looked up for the first time just now.
        """
        new = self.absent(ids)
        ids, stored = ids[new], stored[new]
        slots = self._slots_for(len(ids))
        ids, stored = ids[: len(slots)], stored[: len(slots)]
        gone = self._row_in[slots[slots < self._filled]]
        self._slot_of[gone] = -1
        self._state[_FILLED] = max(self._filled, int(slots.max(initial=-1)) + 1)
        self._slot_of[ids], self._row_in[slots] = slots, ids
        self._begin_uses(len(slots))
        self._last_use[slots] = self._ticks(len(slots))[::-1]  # the most wanted is the youngest
        self._stay[slots] = np.where(self._pinned(ids), _STAYS, _ONCE if trial else _AGAIN)
        self.stored.reshape(-1, self.row_bytes)[slots] = stored

    def age_by_place(self) -> None:
        """Forget when rows were used: those of the last places go first."""
        slots = np.argsort(self._places[self._row_in[: self._filled]])
        self._begin_uses(len(slots))
        self._last_use[slots] = self._ticks(len(slots))[::-1]

    def resize(self, slots: int) -> None:
        """Keep so many rows at most. Rows of slots that are given up go, and their memory with them."""
        self._state[_SLOTS] = min(slots, self._capacity)
        gone = np.arange(self.slots, self._filled)
        self._slot_of[self._row_in[gone]] = -1
        self._state[_FILLED] = min(self._filled, self.slots)
        filled = slice(self._filled)
        pinned, stay = self._pinned(self._row_in[filled]), self._stay[filled]
        self._stay[filled] = np.where(pinned, _STAYS, np.minimum(stay, _AGAIN))
        if len(gone):
            self._give_back()

    def _slots_for(self, count: int) -> Ids:
        """At most so many slots that are free, or whose rows may go."""
        free = np.arange(self._filled, min(self._filled + count, self.slots))
        count -= len(free)
        if count <= 0:
            return free
        stay = self._stay[: self._filled]
        once, again = np.flatnonzero(stay == _ONCE), np.flatnonzero(stay == _AGAIN)
        over = max(0, len(once) + count + len(free) - (len(once) + len(again)) // _TRIAL)
        from_once = min(count, len(once), max(over, count - len(again)))
        return np.concatenate([free, self._oldest(once, from_once), self._oldest(again, count - from_once)])

    def _oldest(self, slots: Ids, count: int) -> Ids:
        """At most so many of these slots, those that were used longest ago, the oldest first."""
        return slots[np.argsort(self._last_use[slots], kind="stable")[: max(0, count)]]

    def _pinned(self, ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        return np.asarray(self._places[ids] < self.slots // _PINNED)

    def _begin_uses(self, count: int) -> None:
        """See to it that so many ticks can come."""
        if self._state[_TICK] + count > _LAST_TICK:
            self._last_use[:] = self._state[_TICK] = 0  # once in four billion look-ups nobody knows what is old

    def _ticks(self, count: int) -> Ids:
        """So many ticks, rising."""
        self._state[_TICK] += count
        return np.arange(self._state[_TICK] - count, self._state[_TICK]) + 1

    def _give_back(self) -> None:
        first = -(-self.slots * self.row_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        end = len(self._memory) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end:
            with suppress(OSError):
                self._memory.madvise(mmap.MADV_DONTNEED, first, end - first)


def _reserve(rows: int, slots: int, row_bytes: int) -> tuple[mmap.mmap, int]:
    """Address space, and for how many rows it is: all, or where so much is refused, those that are to be kept."""
    try:
        return address_space(rows * row_bytes), rows
    except OSError:
        return address_space(max(1, slots * row_bytes)), slots


@dataclass(frozen=True)
class RowFiles:
    """Where a table's pages lie in files.

    Attributes:
        first: number of its first page.
        page_bytes: bytes of a page.
        ids: uint8 [pages, 32], what each should be.
        extents: pages that follow each other: the first, counted from the table's first one, descriptor, and offset.
        reads: reads the pages.
    """

    first: int
    page_bytes: int
    ids: npt.NDArray[np.uint8]
    extents: list[tuple[int, int, int]]
    reads: RowReads

    @classmethod
    def of(cls, first: int, count: int, page_bytes: int, reads: RowReads) -> RowFiles | None:
        """Where so many pages lie; None where only the store can read them, or without the native module."""
        pages = np.arange(first, first + count)
        sources = None if reads.pager.own_reads is None else reads.store.sources(pages)
        if sources is None:
            return None
        follows = (np.diff(sources.descriptors) == 0) & (np.diff(sources.offsets) == page_bytes)
        begins = np.flatnonzero(np.concatenate([[True], ~follows]))
        files, offsets = sources.descriptors[begins], sources.offsets[begins]
        extents = list(zip(begins.tolist(), files.tolist(), offsets.tolist(), strict=True))
        return cls(first, page_bytes, reads.store.index.ids[first : first + count], extents, reads)


class NativeRows:
    """Looks rows up in a memory and reads those that it lacks, as `RowCache` does without it.

    Attributes:
        lookup: the native one. As a context it keeps others from the memory and the tally, as its look-ups do. Python
            code around its lock would leave it taken if Ctrl-C came there.

    Args:
        memory: the table's rows in memory.
        tally: int64 [5]: look-ups, hits, faults, bytes and nanoseconds of faults, to be added to.
        files: where the pages lie.
    """

    def __init__(self, memory: RowMemory, tally: npt.NDArray[np.int64], files: RowFiles) -> None:
        from weightpager.kernels import _native

        own_reads = files.reads.pager.own_reads
        assert own_reads is not None
        self._kept = memory, tally, files  # native code has addresses of what these own
        self._columns = memory.row_bytes - 2
        self._reads = files.reads
        self.lookup = _native.RowLookup(
            own_reads,
            **memory.addresses(),
            tally=tally.ctypes.data,
            ids=files.ids.ctypes.data,
            first_page=files.first,
            page_bytes=files.page_bytes,
            most=most_pages(files.page_bytes),
            bytes_at_once=AT_ONCE,
            extents=files.extents,
        )

    def look_up(self, ids: npt.NDArray[np.int64], out: Wide) -> bool:
        """As `RowCache.look_up`. Returns False where a row isn't in the table."""
        check_wide(out, len(ids), self._columns)
        ids = np.ascontiguousarray(ids, np.int64)
        reads = self._reads
        outcome = self.lookup.look_up(
            ids.ctypes.data, len(ids), out.ctypes.data, is_bfloat16(out), reads.read_timeout, reads.pager.reads_ended
        )
        if outcome is None:
            return False
        failure, number, page, read = outcome
        if read:
            reads.store.count(read)
        if failure:
            raise own_read_error(failure, number, page, reads.read_timeout, "rows of a table")
        return True

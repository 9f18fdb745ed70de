"""The arena in host memory: pages are read straight into their slots, and kernels read them there."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from weightpager.machine.memory import slots_together
from weightpager.machine.storage import ALIGNMENT, address_space

HUGE = 2 << 20
"""Bytes of a huge page, and what the arena is aligned to. Every machine's page fits in it without a rest."""


class Arena:
    """Implements `PageArena`. Address space for slots whose memory is taken when they are first filled.

    Committed slots may be filled; memory of the others has gone back to the machine, and they must not be written to.
    The machine takes and gives memory in pages of its own, which may be larger than a slot: the arena never takes more
    than the machine's pages in which a committed slot lies. Where it can, the machine uses huge pages, but only for
    ranges in which every slot is committed: a huge page takes its memory at the first touch of any of its slots.
    """

    elastic = True
    device = "cpu"

    def __init__(self, capacity: int, slots: int, page_bytes: int, *, huge_pages: bool = True) -> None:
        """Reserve address space, and commit the first slots.

        Args:
            capacity: slots to reserve for; where so much is refused, it is for ``slots`` only.
            slots: to commit.
            page_bytes: bytes of a page.
            huge_pages: whether to ask for them.

        Raises:
            OSError: the machine refuses address space for ``slots``.
        """
        self.page_bytes = page_bytes
        self.together = slots_together(page_bytes)
        self._memory, self.capacity = _reserve(capacity, slots, page_bytes)
        mapped = np.frombuffer(self._memory, np.uint8)
        self._start = -mapped.ctypes.data % HUGE
        size = self.capacity * page_bytes
        self.pages: npt.NDArray[np.uint8] = mapped[self._start :][:size].reshape(self.capacity, page_bytes)
        self._committed = np.zeros(self.capacity, bool)
        self._touched = np.zeros(self.capacity, bool)
        self._huge: npt.NDArray[np.bool_] = np.zeros(self.pages.nbytes // HUGE if huge_pages else 0, bool)
        self.commit(range(slots))

    @property
    def untouched(self) -> int:
        return (int(self._committed.sum()) - int(self._touched.sum())) * self.page_bytes

    def table(self, page_table: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The table itself: kernels read the same memory."""
        return page_table

    @property
    def host(self) -> Arena:
        return self

    @property
    def staged(self) -> None:
        return None

    def address(self, slots: npt.NDArray[np.int64]) -> int:
        self._touched[slots] = True
        return self.pages.ctypes.data

    def views(self, slots: Sequence[int]) -> list[memoryview]:
        return [self.content(slot) for slot in slots]

    def note_read(self) -> None:
        """Kernels have read when they return."""

    def content(self, slot: int) -> memoryview:
        self._touched[slot] = True
        start = self._start + slot * self.page_bytes
        return memoryview(self._memory)[start : start + self.page_bytes]

    def replace(self, slot: int, content: memoryview) -> None:
        self.content(slot)[:] = content

    def commit(self, slots: Iterable[int]) -> None:
        self._committed[list(slots)] = True
        self._advise()

    def release(self, slots: Iterable[int]) -> None:
        gone = list(slots)
        self._committed[gone] = False
        self._touched[gone] = False
        self._advise()  # first: a range that still asks for huge pages would be filled up again in the background
        released = np.zeros(self.capacity, bool)
        released[gone] = True
        for begin, until in _runs(released):
            self._give_back(begin, until)

    def _give_back(self, begin: int, until: int) -> None:
        """Give back the machine's pages that these slots touch, but for those that a committed slot touches, too."""
        machine, size = mmap.PAGESIZE, self.page_bytes
        first, end = begin * size // machine * machine, -(-until * size // machine) * machine
        # Only the outermost pages of the machine have room for slots that weren't released.
        if self._committed[first // size : begin].any():
            first += machine
        if self._committed[until : -(-end // size)].any():
            end -= machine
        if first < end:
            # MADV_DONTNEED alone keeps a huge page whole until the machine runs out of memory; MADV_FREE splits it.
            for advice in (mmap.MADV_FREE, mmap.MADV_DONTNEED):
                with suppress(OSError):  # a kernel without it, or memory that is locked and stays
                    self._memory.madvise(advice, self._start + first, end - first)

    def _advise(self) -> None:
        """Ask for huge pages where every slot is committed, and for none elsewhere."""
        starts = np.arange(len(self._huge)) * HUGE
        before = np.concatenate([[0], np.cumsum(self._committed)])
        first, end = starts // self.page_bytes, -(-(starts + HUGE) // self.page_bytes)
        wanted = before[end] - before[first] == end - first
        for begin, until in _runs(wanted != self._huge):
            advice = mmap.MADV_HUGEPAGE if wanted[begin] else mmap.MADV_NOHUGEPAGE
            try:
                self._memory.madvise(advice, self._start + begin * HUGE, (until - begin) * HUGE)
            except OSError:  # a kernel without huge pages
                return
        self._huge = wanted


def _reserve(capacity: int, slots: int, page_bytes: int) -> tuple[mmap.mmap, int]:
    """Address space whose memory is taken when it is first written to, and for how many slots it is."""
    try:
        return address_space(capacity * page_bytes + HUGE), capacity
    except OSError:
        return address_space(slots * page_bytes + HUGE), slots


def _runs(chosen: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


class PageBuffer:
    """Rows of an array as slots. Nobody reads them before the pager has told that their pages came."""

    def __init__(self, rows: npt.NDArray[np.uint8]) -> None:
        """Take an array.

        Args:
            rows: uint8 [slots, page_bytes], contiguous and aligned as direct reads want it; `aligned_memory` is.

        Raises:
            ValueError: it isn't.
        """
        if rows.dtype != np.uint8 or rows.ndim != 2 or not rows.flags.c_contiguous or not rows.flags.writeable:
            raise ValueError("expected a contiguous uint8 array [pages, page_bytes] that may be written to")
        beyond = rows.ctypes.data % ALIGNMENT if rows.size else 0
        if beyond:
            raise ValueError(f"expected memory on a boundary of {ALIGNMENT} bytes, found it {beyond} bytes behind one")
        self.rows = rows
        self.page_bytes = rows.shape[1]

    def address(self, slots: npt.NDArray[np.int64]) -> int:  # noqa: ARG002 - the protocol's
        return int(self.rows.ctypes.data)

    def views(self, slots: Sequence[int]) -> list[memoryview]:
        return [self.rows[slot].data for slot in slots]

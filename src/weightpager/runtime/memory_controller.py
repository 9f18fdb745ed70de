"""The byte budget and the arena: says no before the machine does."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from weightpager.bundle.footprint import Footprint
from weightpager.config import format_size
from weightpager.errors import BudgetError


@dataclass(frozen=True)
class MemoryUse:
    """Bytes by purpose; ``total`` is what a budget is compared with."""

    arena: int
    resident: int
    private: int
    tables: int
    kv_reserve: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.arena + self.resident + self.private + self.tables + self.kv_reserve


class MemoryController:
    """Splits a budget into what always stays in memory and an arena of page slots.

    Address space is reserved for all pages at once, and memory taken for a slot when a page is first loaded into it, so
    that a budget can change while the arena stays where it is. Pages are read straight into their slots: there is no
    staging memory.

    Attributes:
        arena: uint8 [capacity, page_bytes], at a fixed, page-aligned address; untouched slots cost no memory.
        budget: bytes that may be used.
        page_bytes: bytes of a page.
        slots: pages that may be in the arena.
    """

    def __init__(
        self,
        budget: int | None,
        *,
        pages: int,
        page_bytes: int,
        least_pages: int,
        fixed: Footprint,
        kv_reserve: int = 0,
    ) -> None:
        """Reserve the arena.

        Args:
            budget: bytes; None for what all pages need.
            pages: pages in the bundle: more slots are never useful.
            page_bytes: bytes of a page.
            least_pages: pages of the bundle's smallest task.
            fixed: bytes that are in memory whatever is in the arena.
            kv_reserve: bytes of the budget that are left to the caller's KV caches.

        Raises:
            BudgetError: not even the smallest task fits, or the machine refuses that much address space; says the
                smallest budget that would do.
        """
        self.page_bytes = page_bytes
        self._pages = pages
        self._least_pages = least_pages
        self._parts = fixed
        self._kv_reserve = kv_reserve
        self._fixed = fixed.total + kv_reserve
        self.budget = budget if budget is not None else self._fixed + pages * page_bytes
        self.slots = self.slots_for(self.budget)
        try:
            self._memory = _reserve(max(pages, 1) * page_bytes)
        except OSError as error:
            refused = f"this machine refuses an arena of {format_size(pages * page_bytes)}: state a smaller budget. "
            raise BudgetError(
                f"{refused}{self._need('the smallest task', least_pages)}", self.smallest_budget(least_pages)
            ) from error
        flat = torch.frombuffer(self._memory, dtype=torch.uint8)
        self.arena: Tensor = flat[: pages * page_bytes].view(pages, page_bytes)

    @property
    def capacity(self) -> int:
        """Slots for which there is address space."""
        return len(self.arena)

    @property
    def use(self) -> MemoryUse:
        """Bytes by purpose."""
        parts = self._parts
        return MemoryUse(self.slots * self.page_bytes, parts.resident, parts.private, parts.tables, self._kv_reserve)

    def slots_for(self, budget: int) -> int:
        """Pages that a budget has room for.

        Raises:
            BudgetError: not even the smallest task fits.
        """
        slots = max(0, min(self._pages, (budget - self._fixed) // self.page_bytes))
        if slots < self._least_pages:
            raise self.too_small("the smallest task", self._least_pages, budget)
        return slots

    def resize(self, budget: int, retired: Iterable[int]) -> None:
        """Change the budget; the machine gets the memory of slots that are no longer used."""
        self.slots, self.budget = self.slots_for(budget), budget
        for slot in retired:
            # Only whole pages of the machine, which may be larger than a slot.
            first = -(-slot * self.page_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (slot + 1) * self.page_bytes // mmap.PAGESIZE * mmap.PAGESIZE
            if first < end:
                self._memory.madvise(mmap.MADV_DONTNEED, first, end - first)

    def slot(self, number: int) -> memoryview:
        """A slot's bytes, writable."""
        start = number * self.page_bytes
        return memoryview(self._memory)[start : start + self.page_bytes]

    def smallest_budget(self, pages: int) -> int:
        """Bytes that hold everything fixed and ``pages`` pages."""
        return self._fixed + pages * self.page_bytes

    def too_small(self, what: str, pages: int, budget: int | None = None) -> BudgetError:
        """The error for something that needs ``pages`` pages in the arena at once."""
        stated = self.budget if budget is None else budget
        cannot = f"a budget of {format_size(stated)} ({stated} bytes) is too small. "
        return BudgetError(f"{cannot}{self._need(what, pages)}", self.smallest_budget(pages))

    def _need(self, what: str, pages: int) -> str:
        smallest = self.smallest_budget(pages)
        reserve = f" (with {format_size(self._kv_reserve)} for KV caches)" if self._kv_reserve else ""
        return (
            f"To hold {what} takes {format_size(self._fixed)} for resident and private parameters and tables{reserve}, "
            f"and {format_size(pages * self.page_bytes)} for {pages} pages. "
            f"The smallest budget that would do is {smallest} bytes ({format_size(smallest)})."
        )


def _reserve(count: int) -> mmap.mmap:
    """Address space whose memory is taken when it is first written to."""
    no_reserve = 0x4000  # MAP_NORESERVE on Linux, which Python's mmap doesn't name before 3.11
    return mmap.mmap(-1, count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)

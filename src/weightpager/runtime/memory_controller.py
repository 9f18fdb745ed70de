"""The byte budget and the arena: says no before the machine does."""

from __future__ import annotations

import mmap
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

    @property
    def total(self) -> int:
        """All of it."""
        return self.arena + self.resident + self.private + self.tables


class MemoryController:
    """Splits a budget into what always stays in memory and an arena of page slots.

    Attributes:
        arena: uint8 [slots, page_bytes], at a fixed, page-aligned address; untouched slots cost no memory.
        use: bytes by purpose.
        budget: bytes that may be used.
    """

    def __init__(
        self,
        budget: int | None,
        *,
        pages: int,
        page_bytes: int,
        least_pages: int,
        fixed: Footprint,
    ) -> None:
        """Allocate the arena.

        Args:
            budget: bytes; None for what all pages need.
            pages: pages in the bundle: more slots are never useful.
            page_bytes: bytes of a page.
            least_pages: pages of the bundle's smallest task.
            fixed: bytes that are in memory whatever is in the arena.

        Raises:
            BudgetError: not even the smallest task fits, or the machine refuses that much address space; says the
                smallest budget that would do.
        """
        self._page_bytes = page_bytes
        self._fixed = fixed.total
        self.budget = budget if budget is not None else self._fixed + pages * page_bytes
        slots = max(0, min(pages, (self.budget - self._fixed) // page_bytes))
        if slots < least_pages:
            raise self.too_small("the smallest task", least_pages)
        try:
            self._memory = mmap.mmap(-1, max(slots, 1) * page_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            refused = f"this machine refuses an arena of {format_size(slots * page_bytes)}: state a smaller budget. "
            raise BudgetError(
                f"{refused}{self._need('the smallest task', least_pages)}", self.smallest_budget(least_pages)
            ) from error
        flat = torch.frombuffer(self._memory, dtype=torch.uint8)
        self.arena: Tensor = flat[: slots * page_bytes].view(slots, page_bytes)
        self.use = MemoryUse(slots * page_bytes, fixed.resident, fixed.private, fixed.tables)

    @property
    def slots(self) -> int:
        """Pages that fit into the arena."""
        return len(self.arena)

    def slot(self, number: int) -> memoryview:
        """A slot's bytes, writable."""
        start = number * self._page_bytes
        return memoryview(self._memory)[start : start + self._page_bytes]

    def smallest_budget(self, pages: int) -> int:
        """Bytes that hold everything fixed and ``pages`` pages."""
        return self._fixed + pages * self._page_bytes

    def too_small(self, what: str, pages: int) -> BudgetError:
        """The error for something that needs ``pages`` pages in the arena at once."""
        cannot = f"a budget of {format_size(self.budget)} ({self.budget} bytes) is too small. "
        return BudgetError(f"{cannot}{self._need(what, pages)}", self.smallest_budget(pages))

    def _need(self, what: str, pages: int) -> str:
        smallest = self.smallest_budget(pages)
        return (
            f"To hold {what} takes {format_size(self._fixed)} for resident and private parameters and tables, "
            f"and {format_size(pages * self._page_bytes)} for {pages} pages. "
            f"The smallest budget that would do is {smallest} bytes ({format_size(smallest)})."
        )

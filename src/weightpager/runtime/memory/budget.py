"""The byte budget: says no before the machine does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from weightpager.bundle.footprint import Footprint
from weightpager.config import format_enough, format_room
from weightpager.errors import BudgetError
from weightpager.runtime.budget.row_share import NO_MORE_ROWS, RowShare
from weightpager.runtime.memory.host_arena import Arena
from weightpager.runtime.memory.page_arena import ArenaSource, PageArena
from weightpager.runtime.memory.table_cache import TableCache


@dataclass(frozen=True)
class MemoryUse:
    """Bytes by purpose; ``total`` is what a budget is compared with.

    Attributes:
        arena: slots of pages.
        resident: parameters that all tasks share.
        private: parameters of single tasks.
        tables: block tables of all tasks, and those that are expanded.
        kv_reserve: what is left to KV caches.
        staging: buffers on the way to a device.
        rows: embedding rows that are kept in memory.
    """

    arena: int
    resident: int
    private: int
    tables: int
    kv_reserve: int = 0
    staging: int = 0
    rows: int = 0

    @property
    def total(self) -> int:
        """The sum of all purposes."""
        always = self.resident + self.private + self.tables
        return self.arena + always + self.kv_reserve + self.staging + self.rows


@dataclass(frozen=True)
class Needs:
    """What a bundle asks of a budget.

    Attributes:
        pages: number of its pages; more slots are never useful.
        least_pages: number of pages of its smallest task.
        fixed: bytes that are in memory whatever is in the arena.
        more_rows: the share of the budget that embedding rows get beyond those of ``fixed``.
    """

    pages: int
    least_pages: int
    fixed: Footprint
    more_rows: RowShare = NO_MORE_ROWS


class MemoryBudget:
    """Splits a budget into what always stays in memory, embedding rows, block tables, and an arena of page slots.

    An elastic arena reserves address space for all pages at once, so that a budget can change while the arena stays
    where it is; where so much is refused, for the budget's slots only. Others take memory for those, and keep it.

    Attributes:
        arena: where pages are; it has address space for as many as it was granted.
        budget: bytes that may be used.
        page_bytes: bytes of a page.
        slots: pages that may be in the arena.
        needs: what the bundle asks for.
        tables: expanded block tables, in what pages and embedding rows leave, and at least in what the tasks in use
            take.
        least_tables: bytes of block tables that tasks in use together want, whatever slots must go for them.
    """

    def __init__(
        self,
        budget: int | None,
        needs: Needs,
        *,
        page_bytes: int,
        kv_reserve: int = 0,
        capacity: int | None = None,
        staging: ArenaSource | None = None,
    ) -> None:
        """Reserve the arena.

        Args:
            budget: bytes; None for what all pages and embedding rows need.
            needs: what the bundle asks for.
            page_bytes: bytes of a page.
            kv_reserve: bytes of the budget that are left to the caller's KV caches.
            capacity: slots to reserve address space for, in case that the bundle grows; its pages if None.
            staging: how pages reach the device; None if the arena is in the host's memory.

        Raises:
            BudgetError: not even the smallest task fits, or the machine refuses that much address space; says the
                smallest budget that would do.
        """
        self.page_bytes = page_bytes
        self.needs = needs
        self._kv_reserve = kv_reserve
        self._staging = staging
        self._whole = budget is None
        self.least_tables = 0
        self.budget = budget if budget is not None else self._for_all(needs.pages)
        wanted = needs.pages if capacity is None else capacity
        self.slots = self._slots_for(self.budget, wanted)
        self.arena = self._reserve(wanted)
        self.tables = TableCache(self._table_bytes())

    @property
    def use(self) -> MemoryUse:
        """Bytes by purpose."""
        parts, arena = self.needs.fixed, self._taken(self.slots) * self.page_bytes
        tables = parts.placement + max(self.tables.size, self.tables.taken)
        extra = self._kv_reserve, self._staging_bytes, self.rows
        return MemoryUse(arena, parts.resident, parts.private, tables, *extra)

    @property
    def rows(self) -> int:
        """Bytes for embedding rows."""
        return self.rows_for(self.budget)

    @property
    def host_bytes(self) -> int:
        """Bytes of `use` that lie in the host's memory."""
        return self.use.total if self._staging is None else self._staging_bytes

    def slots_for(self, budget: int) -> int:
        """Pages that a budget has room for.

        Raises:
            BudgetError: not even the smallest task fits, or the arena has taken more and can't give it back.
        """
        least = self.arena.capacity
        if not self.arena.elastic and budget < self.smallest_budget(least):
            refused = "the memory of this device's arena can't be given back in part: open an engine with that budget. "
            raise BudgetError(refused + self._need("the arena", least), self.smallest_budget(least))
        return self._slots_for(budget, self.arena.capacity)

    def _slots_for(self, budget: int, capacity: int) -> int:
        slots = self._most_slots(budget, capacity, self.least_tables)
        if slots < self.needs.least_pages:
            raise self.too_small("the smallest task", self.needs.least_pages, budget)
        return slots

    def slots_beside(self, tables: int) -> int:
        """Pages that the budget has room for beside so many bytes of expanded block tables."""
        return self._most_slots(self.budget, self.arena.capacity, tables)

    def _most_slots(self, budget: int, capacity: int, tables: int) -> int:
        room = budget - self._fixed - self._more_rows(budget) - self._more_tables(tables)
        return max(0, min(self.needs.pages, capacity, room // self.page_bytes))

    def refit(self, needs: Needs) -> int:
        """Note what a changed bundle needs. Returns the budget to `resize` to: the same, or enough for all pages."""
        self.needs = needs
        return self._for_all(self._taken(needs.pages)) if self._whole else self.budget

    @property
    def _fixed(self) -> int:
        """Bytes that neither pages nor more embedding rows can have, with the fewest expanded block tables."""
        fixed = self.needs.fixed
        return fixed.total - fixed.largest_table + self._fewest_tables + self._kv_reserve + self._staging_bytes

    @property
    def _fewest_tables(self) -> int:
        """Bytes of expanded block tables that always have room: one task's, or all where a device has copies."""
        return self.needs.fixed.largest_table if self._staging is None else self.needs.fixed.all_tables

    @property
    def tables_have_grown(self) -> bool:
        """Whether slots have made room for expanded block tables that the tasks in use no longer need."""
        return self.least_tables > max(self._fewest_tables, self.tables.in_use)

    def _more_tables(self, wanted: int) -> int:
        """Bytes of wanted block tables beyond `_fewest_tables`."""
        return max(0, wanted - self._fewest_tables)

    def _table_bytes(self) -> int:
        """Bytes for expanded block tables: what pages and embedding rows leave, as far as that is useful."""
        left = self.budget - self._fixed - self._more_rows(self.budget) - self._taken(self.slots) * self.page_bytes
        most, least = self._more_tables(self.needs.fixed.all_tables), self._more_tables(self.least_tables)
        return self._fewest_tables + max(least, min(left, most))

    def rows_for(self, budget: int) -> int:
        """Bytes for embedding rows that a budget has."""
        return self.needs.fixed.rows + self._more_rows(budget)

    def _more_rows(self, budget: int) -> int:
        return self.needs.more_rows.of(budget - self._fixed, self._more_tables(self.needs.fixed.all_tables))

    def _for_all(self, pages: int) -> int:
        """The budget for so many pages, all embedding rows and all tasks' expanded block tables."""
        tables = self._more_tables(max(self.needs.fixed.all_tables, self.least_tables))
        return self._fixed + pages * self.page_bytes + self.needs.more_rows.all_rows + tables

    @property
    def _staging_bytes(self) -> int:
        return 0 if self._staging is None else self._staging.bytes(self.page_bytes)

    def _taken(self, slots: int) -> int:
        """How many slots take memory while so many are used."""
        return slots if self.arena.elastic else self.arena.capacity

    def resize(self, budget: int, *, retired: Iterable[int] = (), restored: Iterable[int] = ()) -> None:
        """Change the budget, and with it the slots that may be used."""
        self.slots, self.budget = self.slots_for(budget), budget
        self._whole = self._whole and budget == self._for_all(self._taken(self.needs.pages))
        self.arena.release(retired)
        self.arena.commit(restored)
        self.tables.resize(self._table_bytes())

    def smallest_budget(self, pages: int, tables: int = 0) -> int:
        """Bytes that hold everything fixed and ``pages`` pages, beside the embedding rows that come before these.

        Args:
            pages: how many are in the arena at once.
            tables: bytes of expanded block tables.
        """
        size = pages * self.page_bytes + self._more_tables(max(tables, self.least_tables))
        return self._fixed + size + self.needs.more_rows.beside(size)

    def too_small(self, what: str, pages: int, budget: int | None = None, tables: int = 0) -> BudgetError:
        """The error for something that needs ``pages`` pages at once, and so many bytes of expanded block tables."""
        stated = self.budget if budget is None else budget
        cannot = f"a budget of {format_room(stated)} ({stated} bytes) is too small. "
        return BudgetError(f"{cannot}{self._need(what, pages, tables)}", self.smallest_budget(pages, tables))

    def _need(self, what: str, pages: int, tables: int = 0) -> str:
        smallest = self.smallest_budget(pages, tables)
        more_tables = self._more_tables(max(tables, self.least_tables))
        rows = self.needs.more_rows.beside(pages * self.page_bytes + more_tables)
        extra = {"KV caches": self._kv_reserve, "staging": self._staging_bytes, "rows": self.needs.fixed.rows + rows}
        parts = [f"{format_enough(size)} for {purpose}" for purpose, size in extra.items() if size]
        more = f" (with {', '.join(parts)})" if parts else ""
        fixed = format_enough(self._fixed + rows + more_tables)
        return (
            f"To hold {what} takes {fixed} for resident and private parameters and tables"
            f"{more}, and {format_enough(pages * self.page_bytes)} for {pages} pages. "
            f"The smallest budget that would do is {smallest} bytes ({format_enough(smallest)})."
        )

    def _reserve(self, capacity: int) -> PageArena:
        try:
            if self._staging is None:
                return Arena(capacity, self.slots, self.page_bytes)
            return self._staging.arena(capacity, self.slots, self.page_bytes)
        except OSError as error:
            size, least = format_enough(self.slots * self.page_bytes), self.needs.least_pages
            refused = f"this machine refuses an arena of {size}: state a smaller budget. "
            raise BudgetError(refused + self._need("the smallest task", least), self.smallest_budget(least)) from error

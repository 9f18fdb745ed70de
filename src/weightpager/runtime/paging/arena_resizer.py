"""How many slots there are: a budget gives them, and tables of tasks in use may take some of them for a while."""

from __future__ import annotations

from weightpager.runtime.budget.refusals import too_small
from weightpager.runtime.paging.slot_allocator import SlotAllocator
from weightpager.runtime.paging.state import PagingState


class ArenaResizer:
    """Changes how many slots the arena has.

    Whoever calls has the turn and holds the lock, which is given up while reads in flight are waited for.
    """

    def __init__(self, state: PagingState, slots: SlotAllocator) -> None:
        self._state = state
        self._blocks = state.blocks
        self._slots = slots

    def resize(self, budget: int, tables: int | None = None) -> None:
        """Use the slots of another budget, evicting what must go.

        Args:
            budget: bytes.
            tables: bytes of expanded block tables that must have room; those of the tasks in use if None.

        Raises:
            BudgetError: tasks in use need more, or not even the smallest task would fit; nothing has changed.
            StoreTimeoutError: reads that hang have slots that must go; nothing has changed.
            EngineClosedError: it was closed while slots were waited for; nothing has changed.
        """
        memory = self._state.memory
        wanted = memory.tables.in_use if tables is None else tables
        fewer = self._blocks.slots - memory.split_for(budget, wanted).slots
        if fewer > 0:
            self._await_slots(fewer, budget, wanted)
            slots, pages = self._blocks.to_retire(fewer)
            self._slots.evict(pages)
            self._blocks.retire(slots)
            memory.resize(budget, wanted, retired=slots)
        else:
            memory.resize(budget, wanted, restored=self._blocks.restore(-fewer))
            self._state.news.notify_all()

    def restore(self) -> None:
        """Use slots again that made room for block tables of tasks which have left."""
        if self._state.memory.has_spare_table_room:
            self.resize(self._state.memory.budget)

    def _await_slots(self, count: int, budget: int, tables: int) -> None:
        """Wait until reads in flight let so many slots go. Errors are those of `resize`."""
        while count > self._blocks.free + len(self._blocks.evictable()):
            held = len(self._blocks.locked())
            if count > self._blocks.slots - held:
                raise too_small(self._state.memory.needs, "the tasks in use", held, budget, tables=tables)
            if not self._slots.await_read():
                raise self._slots.hang_error()

"""A smaller budget where the machine's pages are larger than slots: memory goes back all the same."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from numbered_pages import NumberedPages, checked
from weightpager.bundle.footprint import Footprint
from weightpager.runtime.budget import MemoryNeeds
from weightpager.runtime.memory.memory_budget import MemoryBudget
from weightpager.runtime.paging.pager import Pager, PrefetchedPages
from weightpager.runtime.paging.residency import Residency
from weightpager.runtime.paging.state import PagingState, SwitchRequest
from weightpager.runtime.planning.block_manager import BlockManager

PAGE, PAGES = 4096, 17  # page 0, which is all zeros, belongs to no task


@pytest.mark.parametrize("times", [1, 2, 4, 8])
def test_memory_of_half_of_the_slots_goes_back(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Pages that were used long ago lie in every one of the machine's pages, which are so many times as large."""
    monkeypatch.setattr(mmap, "PAGESIZE", times * PAGE)
    memory = MemoryBudget(PAGES * PAGE, MemoryNeeds(PAGES, 1, PAGE, Footprint(0, 0, 0, largest_table=0, all_tables=0)))
    arena = memory.arena
    needs = [np.array([page]) for page in range(1, PAGES)]
    blocks = BlockManager(needs, PAGES, PAGES, arena.capacity, together=arena.together)
    pager, store = Pager(arena, 1), checked(NumberedPages(PAGE), PAGES, PAGE)
    state = PagingState(blocks, PrefetchedPages(PAGES), memory, store.index, pager, store, read_timeout=20)
    residency = Residency(state)
    for task in [*range(16), *range(0, 16, 2)]:
        residency.hold(SwitchRequest(task, f"t{task}"))
        residency.release(task)
    assert np.count_nonzero(arena.pages.any(axis=1)) == 16
    residency.resize(8 * PAGE)
    assert np.count_nonzero(arena.pages.any(axis=1)) == len(blocks.resident()) == 8
    for page in blocks.resident():
        assert (arena.pages[blocks.page_table[page]] == page).all()
    assert pager.close()

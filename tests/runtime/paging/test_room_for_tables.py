"""Block tables that have no room at a switch: refused while the previous task is whole, or told as a failed switch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from engines import InThread
from numbered_pages import NumberedPages, checked
from weightpager.bundle.footprint import Footprint
from weightpager.errors import BudgetError, SwitchFailedError
from weightpager.runtime.budget import MemoryNeeds
from weightpager.runtime.memory.memory_budget import MemoryBudget
from weightpager.runtime.paging.pager import Pager, PrefetchedPages
from weightpager.runtime.paging.residency import Residency
from weightpager.runtime.paging.state import NEVER, Deadline, PagingState, SwitchRequest
from weightpager.runtime.planning.block_manager import BlockManager

PAGE = 4096


@dataclass(eq=False)
class Tables:
    nbytes: int

    @property
    def parts(self) -> tuple[Tables, ...]:
        return (self,)

    def expand(self) -> None:
        pass

    def give_back(self) -> None:
        pass


@dataclass
class Tasks:
    """Pages and table sizes of tasks, in an arena of some slots and with room for the largest tables."""

    residency: Residency
    state: PagingState
    tables: list[Tables]

    def request(self, task: int, previous: int | None = None, deadline: Deadline = NEVER) -> SwitchRequest:
        tables = None if previous is None else self.tables[previous]
        return SwitchRequest(
            task, f"t{task}", previous, deadline=deadline, tables=self.tables[task], previous_tables=tables
        )

    def hold(self, task: int) -> None:
        self.residency.hold(self.request(task))

    def release(self, task: int) -> None:
        self.residency.release(task, self.tables[task])


class Opened:
    """Opens tasks, and closes them all."""

    def __init__(self) -> None:
        self._pagers: list[Pager] = []

    def __call__(self, slots: int, *tasks: tuple[range, int]) -> Tasks:
        pages, sizes = 1 + max(need[-1] for need, _ in tasks), [PAGE * units for _, units in tasks]
        fixed = Footprint(0, 0, 0, largest_table=max(sizes), all_tables=sum(sizes))
        least = min(len(need) for need, _ in tasks)
        memory = MemoryBudget(max(sizes) + slots * PAGE, MemoryNeeds(pages, least, PAGE, fixed))
        needs = [np.arange(need.start, need.stop) for need, _ in tasks]
        blocks, pager = BlockManager(needs, pages, slots, memory.arena.capacity), Pager(memory.arena, 1)
        self._pagers.append(pager)
        store = checked(NumberedPages(PAGE), pages, PAGE)
        state = PagingState(blocks, PrefetchedPages(pages), memory, store.index, pager, store, read_timeout=20)
        return Tasks(Residency(state), state, [Tables(size) for size in sizes])

    def close(self) -> None:
        assert all(pager.close() for pager in self._pagers)


@pytest.fixture
def opened() -> Iterator[Opened]:
    made = Opened()
    yield made
    made.close()


@pytest.mark.parametrize("pages", [range(8, 12), range(4, 8)], ids=["in place of the previous task", "beside it"])
def test_tables_that_cannot_fit_are_refused_before_the_previous_task_goes(opened: Opened, pages: range) -> None:
    """Pages would fit; the tables of the task in use and of the new one leave them a slot too few."""
    tasks = opened(8, (range(4), 1), (range(4, 8), 1), (pages, 3))
    used, old, new = 0, 1, 2
    tasks.hold(used)
    tasks.hold(old)
    given_up: list[int] = []

    def give_up() -> None:
        given_up.append(old)
        tasks.release(old)

    request = replace(tasks.request(new, old), give_up=give_up)
    with pytest.raises(BudgetError, match="'t2' beside the tasks in use"):
        tasks.residency.hold(request)
    assert not given_up
    waiting = InThread(lambda: tasks.residency.hold(replace(request, deadline=Deadline.after(20))))
    waiting.join(0.1)
    assert waiting.is_alive()
    assert not given_up
    assert tasks.state.blocks.is_held(old)
    assert tasks.state.blocks.is_resident(old)
    tasks.release(used)
    waiting.result()
    assert tasks.state.blocks.is_resident(new)
    assert tasks.state.memory.use.total <= tasks.state.memory.budget


def test_tables_that_lose_their_room_once_the_previous_task_is_gone_are_a_failed_switch(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody enters a resident task just then, which takes the last room for tables."""
    tasks = opened(7, (range(3), 1), (range(3), 1), (range(3, 7), 1), (range(7, 11), 2), (range(3), 3))
    used, resident, old, new, _ = range(5)
    for task in (used, resident, old):
        tasks.hold(task)
    tasks.release(resident)
    given_up = threading.Event()
    end_commit = PagingState.end_commit

    def give_up() -> None:
        assert not given_up.is_set()
        given_up.set()
        tasks.release(old)

    def entered(state: PagingState) -> None:
        end_commit(state)
        monkeypatch.undo()
        tasks.hold(resident)

    monkeypatch.setattr(PagingState, "end_commit", entered)
    request = replace(tasks.request(new, old, Deadline.after(20)), give_up=give_up)
    with pytest.raises(SwitchFailedError, match="switching to 't3' failed, no task is active now: a budget of"):
        tasks.residency.hold(request)
    assert given_up.is_set()
    assert not tasks.state.blocks.is_held(new)
    assert tasks.state.memory.tables.in_use == 2 * PAGE

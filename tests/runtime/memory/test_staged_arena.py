"""The arena of a device with memory of its own, on a device whose streams are late."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pytest
import torch

from devices import HostCopier, LateCopier, LateStream
from numbered_pages import checked
from weightpager.bundle.footprint import Footprint
from weightpager.errors import BudgetError, StoreError
from weightpager.runtime.budget import MemoryNeeds
from weightpager.runtime.memory.host_arena import Arena
from weightpager.runtime.memory.memory_budget import MemoryBudget
from weightpager.runtime.memory.page_arena import ReadFence
from weightpager.runtime.memory.staged_arena import StagedArena, Staging
from weightpager.runtime.paging.load import Priority
from weightpager.runtime.paging.pager import Pager

PAGE = 4096
PAGES = 16


@pytest.fixture
def copier() -> Iterator[LateCopier]:
    made = LateCopier()
    yield made
    made.finish()


def arena_of(copier: LateCopier, slots: int = 4, buffers: int = 1) -> tuple[StagedArena, torch.Tensor]:
    arena = StagedArena(slots, slots, PAGE, Staging(copier, buffers))
    return arena, arena.table(np.full(PAGES, -1, np.int32))


def bring(arena: StagedArena, slots: dict[int, int]) -> None:
    """Page p holds the byte p."""
    stage = arena.stage()
    assert stage is not None
    try:
        stage.rows[: len(slots)] = np.array(list(slots))[:, None]
        stage.place(slots, arena.reads())
    finally:
        stage.give_back()


class Kernel:
    """Reads pages when its turn comes, each through the table."""

    def __init__(self, arena: StagedArena, table: torch.Tensor, *pages: int) -> None:
        self.arena, self.table, self.pages = arena, table, pages
        self.found: list[list[int] | None] = []

    def __call__(self) -> None:
        for page in self.pages:
            slot = int(self.table[page])
            self.found.append(None if slot < 0 else self.arena.pages[slot].unique().tolist())


def test_a_kernel_that_is_late_reads_what_was_there_when_it_was_launched(copier: LateCopier) -> None:
    arena, table = arena_of(copier)
    bring(arena, {1: 0, 2: 1})
    copier.computing.hold()
    late = Kernel(arena, table, 1, 2)
    copier.computing.launch(late)
    arena.note_read()
    refill = threading.Thread(target=bring, args=(arena, {3: 0, 1: 2}))  # both pages left; one comes back elsewhere
    refill.start()
    refill.join(0.1)
    assert refill.is_alive()
    assert arena.pages[0].unique().tolist() == [1]
    copier.computing.go_on()
    refill.join(60)
    now = Kernel(arena, table, 1, 2, 3)
    now()
    assert late.found == [[1], [2]]
    assert now.found == [[1], [2], [3]]
    assert table.tolist()[:4] == [-1, 2, 1, 0]


def test_a_kernel_that_is_late_reads_its_page_though_another_has_the_number_by_now(copier: LateCopier) -> None:
    """The new page comes into a slot that was never filled: the number alone must be waited for."""
    arena, table = arena_of(copier)
    bring(arena, {1: 0})
    copier.computing.hold()
    late = Kernel(arena, table, 1)
    copier.computing.launch(late)
    arena.note_read()

    def bring_other() -> None:
        stage = arena.stage()
        assert stage is not None
        stage.rows[0] = 9
        stage.place({1: 2}, arena.reads())
        stage.give_back()

    other = threading.Thread(target=bring_other)
    other.start()
    other.join(0.1)
    assert other.is_alive()
    copier.computing.go_on()
    other.join(60)
    now = Kernel(arena, table, 1)
    now()
    assert (late.found, now.found) == ([[1]], [[9]])


def test_copies_wait_for_kernels_launched_before_the_load_and_for_no_later_ones(copier: LateCopier) -> None:
    arena, table = arena_of(copier)
    bring(arena, {1: 0, 2: 1})
    after = arena.reads()
    copier.computing.hold()
    copier.computing.launch(Kernel(arena, table, 1))
    arena.note_read()
    stage = arena.stage()
    assert stage is not None
    stage.rows[0] = 3
    stage.place({3: 1}, after)
    stage.give_back()
    bring(arena, {4: 2})  # into a slot that was never filled: nobody can be reading it
    assert table.tolist()[:5] == [-1, 0, -1, 1, 2]


def test_the_table_forgets_a_page_before_its_slot_is_written_to(copier: LateCopier) -> None:
    arena, table = arena_of(copier)
    bring(arena, {1: 0})
    seen = []
    write = arena._put

    def watched(slot: int, content: torch.Tensor) -> None:
        seen.append(table.tolist()[:3])
        write(slot, content)

    arena._put = watched  # type: ignore[method-assign]
    bring(arena, {2: 0})
    assert seen == [[-1, -1, -1]]
    assert table.tolist()[:3] == [-1, -1, 0]


def test_released_slots_are_read_to_the_end_and_then_forgotten(copier: LateCopier) -> None:
    arena, table = arena_of(copier)
    bring(arena, {1: 0, 2: 1})
    copier.computing.hold()
    late = Kernel(arena, table, 1)
    copier.computing.launch(late)
    arena.note_read()
    releasing = threading.Thread(target=arena.release, args=([0],))
    releasing.start()
    releasing.join(0.1)
    assert releasing.is_alive()
    copier.computing.go_on()
    releasing.join(60)
    assert late.found == [[1]]
    assert table.tolist()[:3] == [-1, -1, 1]
    assert not arena.pages[0].any()


def test_content_and_replacement(copier: LateCopier) -> None:
    arena, _ = arena_of(copier)
    bring(arena, {7: 3})
    assert bytes(arena.content(3)) == bytes([7]) * PAGE
    arena.replace(3, memoryview(bytearray([9]) * PAGE))
    assert bytes(arena.content(3)) == bytes([9]) * PAGE


def test_stages_are_counted_and_never_waited_for(copier: LateCopier) -> None:
    arena, _ = arena_of(copier, buffers=2)
    stages = [arena.stage(), arena.stage()]
    assert arena.stage() is None
    for stage in stages:
        assert stage is not None
        stage.give_back()
    assert arena.stage() is not None


class GatedStore:
    """Page p holds the byte p; reads wait until they are let through."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.changed = threading.Condition()
        self.open: set[int] = set()

    def let_through(self, *pages: int) -> None:
        with self.changed:
            self.open |= set(pages)
            self.changed.notify_all()

    def wait_for(self, *pages: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: set(pages) <= set(self.begun), timeout=20)

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        with self.changed:
            self.begun.append(first)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: first in self.open, timeout=20)
        into[0][:] = bytes([first]) * PAGE

    def span(self, first: int) -> int:
        return 1

    def close(self) -> None:
        pass


class Ends:
    """What a pager told of reads that ended."""

    def __init__(self) -> None:
        self.of: dict[int, BaseException | None] = {}
        self.changed = threading.Condition()

    def __call__(self, pages: Collection[int], error: BaseException | None) -> None:
        with self.changed:
            self.of.update(dict.fromkeys(pages, error))
            self.changed.notify_all()

    def wait_for(self, *pages: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: set(pages) <= set(self.of), timeout=20)


def test_reads_wait_for_a_stage_where_they_can_be_cancelled_and_overtaken(copier: LateCopier) -> None:
    arena, table = arena_of(copier, slots=8, buffers=2)
    store, ends, pager = GatedStore(), Ends(), Pager(arena, reads=4)
    pager.load(checked(store, PAGES, PAGE), np.arange(5), np.arange(5), Priority.PREFETCH, ends)
    store.wait_for(0, 1)
    pager.load(checked(store, PAGES, PAGE), np.array([7]), np.array([7]), Priority.ON_DEMAND, ends)
    assert sorted(pager.cancel(but=[2, 7])) == [3, 4]
    assert sorted(store.begun) == [0, 1]
    store.let_through(0, 7, 2)  # page 1 hangs, and keeps its buffer
    ends.wait_for(0, 7, 2)
    assert store.begun[2:] == [7, 2]
    assert ends.of == {0: None, 7: None, 2: None}
    store.let_through(1)
    ends.wait_for(1)
    assert pager.close()
    kernel = Kernel(arena, table, 0, 1, 2, 3, 7)
    kernel()
    assert kernel.found == [[0], [1], [2], None, [7]]


def test_a_pager_whose_stages_all_hang_can_be_closed(copier: LateCopier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.runtime.paging.thread_reads.JOIN_SECONDS", 0.05)
    arena, _ = arena_of(copier, buffers=1)
    store, ends, pager = GatedStore(), Ends(), Pager(arena, reads=2)
    pager.load(checked(store, PAGES, PAGE), np.arange(2), np.arange(2), Priority.ON_DEMAND, ends)
    store.wait_for(0)
    assert not pager.close()
    assert list(ends.of) == [1]
    store.let_through(0)
    ends.wait_for(0)


def test_a_copy_that_fails_is_an_error_of_the_store(copier: LateCopier) -> None:
    arena, table = arena_of(copier)
    bring(arena, {1: 0})
    copier.failing = 1
    with pytest.raises(StoreError, match="cannot copy pages to cpu: CUDA error"):
        bring(arena, {2: 0})
    bring(arena, {3: 0})
    assert arena.pages[0].unique().tolist() == [3]
    assert table.tolist()[2:4] == [-1, 0]


def test_an_event_that_was_asked_for_stays_where_it_is() -> None:
    stream = LateStream()
    fence = ReadFence(lambda: stream)
    fence.note()
    fence.note()
    asked = fence.events()
    assert len(asked) == 1
    asked[0].synchronize()
    stream.hold()
    fence.note()
    assert asked[0].query()
    later = fence.events()
    assert not later[0].query()
    fence.note()
    assert len(fence.events()) == 2
    stream.finish()
    assert fence.events() == ()


def memory_budget(staging: Staging | None, budget: int | None = None) -> MemoryBudget:
    return MemoryBudget(budget, MemoryNeeds(10, 2, PAGE, Footprint(100, 10, 1)), staging=staging)


def test_staging_is_part_of_the_budget() -> None:
    staging = Staging(HostCopier(), 3)
    memory = memory_budget(staging)
    assert memory.use.staging == staging.bytes(PAGE) == memory.host_bytes == 3 << 20
    assert memory.use.total == memory.budget == 111 + 10 * PAGE + (3 << 20)
    assert memory_budget(None).host_bytes == memory_budget(None).use.total == 111 + 10 * PAGE
    with pytest.raises(BudgetError, match=r"with 3.0 MiB for staging") as error:
        memory_budget(staging, 1 << 20)
    assert error.value.smallest == 111 + 2 * PAGE + (3 << 20)


class FixedMemory(Arena):
    elastic = False


class FixedCopier(HostCopier):
    def memory(self, capacity: int, slots: int, page_bytes: int) -> Arena:
        return FixedMemory(slots, slots, page_bytes)


def test_memory_that_cannot_be_given_back_is_not_promised_to_be() -> None:
    staging = Staging(FixedCopier(), 1)
    memory = memory_budget(staging, 111 + 6 * PAGE + staging.bytes(PAGE))
    assert memory.arena.capacity == memory.split.slots == 6
    with pytest.raises(BudgetError, match="can't be given back in part") as error:
        memory.split_for(memory.budget - 1)
    assert error.value.smallest == memory.budget
    assert memory.split_for(10 * memory.budget).slots == 6
    whole = memory_budget(staging)
    assert whole.refit(MemoryNeeds(4, 2, PAGE, Footprint(100, 10, 1))) == whole.budget
    whole.resize(whole.budget)
    assert (whole.split.slots, whole.use.total) == (4, whole.budget)

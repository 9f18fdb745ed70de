"""The block manager against a plain model, with its own integrity check after every step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.pages import ABSENT

PAGES, SLOTS = 12, 6

page_sets = st.sets(st.integers(0, PAGES - 1), min_size=1, max_size=SLOTS).map(sorted)


def manager(*needs: list[int], slots: int = SLOTS, capacity: int | None = None, together: int = 1) -> BlockManager:
    return BlockManager([np.array(need, np.int64) for need in needs], PAGES, slots, capacity, together=together)


def bring_in(blocks: BlockManager, task: int) -> None:
    """Load a task beside what is held, and leave it."""
    plan = blocks.plan(task)
    assert plan is not None
    blocks.evict(plan.evict)
    blocks.reserve(plan.prepare)
    blocks.publish(plan.prepare)
    blocks.hold(task)
    blocks.release(task)


def retire(blocks: BlockManager, count: int) -> list[int]:
    slots, pages = blocks.to_retire(count)
    blocks.evict(pages)
    blocks.retire(slots)
    return slots


def resident(blocks: BlockManager) -> set[int]:
    return set(blocks.resident().tolist())


def array(*pages: int) -> np.ndarray:
    return np.array(pages, np.int64)


def test_least_recently_used_pages_go_first() -> None:
    blocks = manager([0], [1], [2], [5, 6], slots=3)
    for task in (1, 0, 2):
        bring_in(blocks, task)
    plan = blocks.plan(3)
    assert plan is not None
    assert plan.evict.tolist() == [1, 0]
    assert plan.prepare.tolist() == [5, 6]


def test_what_will_be_used_least_goes_first_whenever_it_was_used() -> None:
    blocks = manager([0], [1], [2], [5, 6], slots=3)
    for task in (1, 0, 2):
        bring_in(blocks, task)
    plan = blocks.plan(3, ask_uses=lambda: np.array([0.1, 0.9, 0.1, 0.0]))
    assert plan is not None
    assert plan.evict.tolist() == [0, 2]


def test_a_page_is_worth_what_all_its_tasks_will_use() -> None:
    blocks = manager([0, 1], [1, 2], [5], slots=3)
    bring_in(blocks, 0)
    bring_in(blocks, 1)
    plan = blocks.plan(2, ask_uses=lambda: np.array([0.3, 0.4, 0.0]))
    assert plan is not None
    assert plan.evict.tolist() == [0]


@given(
    needs=st.lists(page_sets, min_size=3, max_size=5),
    visits=st.lists(st.integers(0, 4), min_size=4, max_size=12),
    wanted=st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
def test_what_will_be_used_least_goes_first_and_among_equals_the_least_recent(
    needs: list[list[int]], visits: list[int], wanted: list[int]
) -> None:
    blocks = manager(*needs)
    used = [0] * len(needs)

    def rank(page: int) -> tuple[int, int]:
        users = [task for task, need in enumerate(needs) if page in need]
        return sum(wanted[task] for task in users), max(used[task] for task in users)

    for number, task in enumerate((visit % len(needs) for visit in visits), 1):
        blocks.hold(task)
        used[task] = number
        plan = blocks.plan(task, ask_uses=lambda: np.array(wanted[: len(needs)], np.float64))
        assert plan is not None
        spare = resident(blocks) - set(needs[task])
        assert sorted(plan.evict.tolist()) == sorted(sorted(sorted(spare), key=rank)[: len(plan.evict)])
        blocks.evict(plan.evict)
        blocks.reserve(plan.prepare)
        blocks.publish(plan.prepare)
        blocks.release(task)


def test_the_old_task_is_given_up_only_for_what_has_no_other_room() -> None:
    blocks = manager([0, 1, 2], [2, 3, 4], [9], slots=4)
    bring_in(blocks, 0)
    bring_in(blocks, 2)
    blocks.hold(0)
    plan = blocks.plan(1, previous=0)
    assert plan is not None
    assert plan.evict.tolist() == [9]
    assert plan.prepare.tolist() == [3]
    assert plan.commit.tolist() == [4]
    assert blocks.plan(1) is None


def test_pages_that_another_task_in_use_needs_are_not_given_up() -> None:
    blocks = manager([0, 1, 2], [0], [3, 4, 5], [3, 4], slots=3)
    bring_in(blocks, 0)
    blocks.hold(0)
    blocks.hold(1)
    assert blocks.plan(2, previous=0) is None
    plan = blocks.plan(3, previous=0)
    assert plan is not None
    assert plan.commit.tolist() == [3, 4]
    assert blocks.locked().tolist() == [0, 1, 2]
    assert (blocks.pages_in_use(2), blocks.pages_in_use(2, previous=0), blocks.pages_in_use(3, previous=0)) == (6, 4, 3)


def test_pages_that_are_on_their_way_are_not_loaded_again() -> None:
    blocks = manager([0, 1], [1, 2])
    blocks.hold(0)
    blocks.reserve(array(0, 1))
    plan = blocks.plan(1)
    assert plan is not None
    assert plan.loading.tolist() == [1]
    assert plan.prepare.tolist() == [2]


def test_slots_that_are_retired_are_not_used_until_they_are_restored() -> None:
    blocks = manager([0, 1, 2, 3], slots=4, capacity=6)
    assert retire(blocks, 2) == [3, 2]
    assert blocks.plan(0) is None
    blocks.check_integrity()
    blocks.restore(4)
    assert (blocks.slots, blocks.free) == (6, 6)
    bring_in(blocks, 0)
    assert sorted(blocks.page_table[[0, 1, 2, 3]].tolist()) == [0, 1, 2, 3]
    blocks.check_integrity()


def test_free_slots_are_retired_first_and_then_those_of_the_least_recently_used_pages() -> None:
    blocks = manager([0], [1], [2], slots=5)
    for task in (1, 0, 2):
        bring_in(blocks, task)
    slot = blocks.page_table.copy()
    assert retire(blocks, 3) == [4, 3, slot[1]]
    assert resident(blocks) == {0, 2}


def test_slots_that_give_memory_back_together_are_retired_together() -> None:
    blocks = manager(*([page] for page in range(8)), slots=8, together=2)
    for task in range(8):  # each page in the slot of its number
        bring_in(blocks, task)
    blocks.hold(3)
    blocks.evict(array(2, 7))
    assert sorted(retire(blocks, 2)) == [0, 1]  # though two others are free
    assert retire(blocks, 1) == [4]
    assert resident(blocks) == {3, 5, 6}
    bring_in(blocks, 5)
    assert retire(blocks, 1) == [5]  # the rest of its group, though it was used last
    assert retire(blocks, 2) == [7, 6]
    assert blocks.restore(1) == [0]
    assert blocks.restore(2) == [1, 4]
    assert blocks.restore(1) == [5]
    blocks.check_integrity()


def test_what_can_not_be_given_back_whole_is_taken_from_groups_that_stay() -> None:
    blocks = manager([0], [1], [2], [3], slots=4, together=2)
    for task in range(4):
        bring_in(blocks, task)
    for task in (1, 2):
        blocks.hold(task)
    assert retire(blocks, 2) == [0, 3]
    assert resident(blocks) == {1, 2}


def test_misuse_is_refused() -> None:
    blocks = manager([0], [1, 2], slots=2)
    bring_in(blocks, 0)
    blocks.hold(0)
    with pytest.raises(ValueError, match="no held task needs"):
        blocks.evict(array(0))
    with pytest.raises(ValueError, match="resident"):
        blocks.evict(array(1))
    with pytest.raises(ValueError, match="absent"):
        blocks.reserve(array(0))
    with pytest.raises(ValueError, match="free slot"):
        blocks.reserve(array(1, 2))
    with pytest.raises(ValueError, match="is held"):
        blocks.release(1)
    with pytest.raises(ValueError, match="free slots"):
        blocks.retire([0, 1])


class Residency(RuleBasedStateMachine):
    """Random plans carried out, some of them failing half-way, some slowly."""

    @initialize(needs=st.lists(page_sets, min_size=2, max_size=5), together=st.sampled_from([1, 2, 3, 5]))
    def start(self, needs: list[list[int]], together: int) -> None:
        self.needs = [set(need) for need in needs]
        self.blocks = manager(*needs, capacity=PAGES, together=together)
        self.held: list[int] = []
        self.coming: list[int] = []
        self.address = self.blocks.page_table.ctypes.data
        self.look()

    @rule()
    def look(self) -> None:
        """What a prefetch is planned from, and carried out later if the version is still the same."""
        seen = self.blocks.occupancy()
        gone = (seen.resident & ~seen.locked).nonzero()[0]
        absent = (~(seen.resident | seen.loading)).nonzero()[0]
        self.seen = self.blocks.version, seen.free, set(gone.tolist()), set(absent.tolist())

    @invariant()
    def a_plan_that_is_not_stale_can_be_carried_out(self) -> None:
        version, free, gone, absent = self.seen
        if self.blocks.version == version:
            now = self.blocks.occupancy()
            assert now.free >= free
            assert all(now.resident[page] and not now.locked[page] for page in gone)
            assert not any(now.resident[page] or now.loading[page] for page in absent)

    def kept(self) -> set[int]:
        return {page for task in self.held for page in self.needs[task]}

    @rule(task=st.integers(0, 4), come=st.integers(0, 6), fail=st.booleans())
    def load(self, task: int, come: int, fail: bool) -> None:
        task %= len(self.needs)
        plan = self.blocks.plan(task)
        before = resident(self.blocks)
        if plan is None:
            assert len(self.kept() | self.needs[task] | set(self.coming)) > self.blocks.slots
            return
        assert not set(plan.evict.tolist()) & (self.kept() | self.needs[task])
        assert plan.loading.tolist() == [page for page in sorted(self.needs[task]) if page in self.coming]
        absent = self.needs[task] - before - set(self.coming)
        assert plan.prepare.tolist() == sorted(absent)
        assert not len(plan.commit)
        self.blocks.evict(plan.evict)
        self.blocks.reserve(plan.prepare)
        pages = plan.prepare.tolist()
        self.blocks.publish(pages[:come])
        if fail:
            self.blocks.cancel(pages[come:])
        else:
            self.coming += pages[come:]
        if self.needs[task] <= resident(self.blocks):
            self.blocks.hold(task)
            self.held.append(task)

    @rule(task=st.integers(0, 4), which=st.integers(0, 10), wanted=st.lists(st.integers(0, 3), min_size=5, max_size=5))
    def switch_at_once(self, task: int, which: int, wanted: list[int]) -> None:
        """From one of the tasks that are held, all pages in one step, as a plan of both phases says."""
        task %= len(self.needs)
        previous = self.held[which % len(self.held)] if self.held else None
        expected_uses = np.array(wanted[: len(self.needs)], np.float64)
        plan = self.blocks.plan(task, previous, lambda: expected_uses)
        if self.coming:
            return
        stay = self.needs[task].union(*(self.needs[one] for one in self.others(previous)))
        assert self.blocks.has_room(task, previous) == (plan is not None) == (len(stay) <= self.blocks.slots)
        if plan is None:
            return
        absent = self.needs[task] - resident(self.blocks)
        assert [*plan.prepare.tolist(), *plan.commit.tolist()] == sorted(absent)
        assert not set(plan.evict.tolist()) & (self.kept() | self.needs[task])
        assert len(plan.evict_previous) == len(plan.commit)
        assert not set(plan.evict_previous.tolist()) & stay
        if len(plan.commit):
            assert previous is not None
            self.held.remove(previous)
            self.blocks.release(previous)
            plan = plan.merged()
        self.blocks.evict(plan.evict)
        self.blocks.reserve(plan.prepare)
        self.blocks.publish(plan.prepare)
        self.blocks.hold(task)
        self.held.append(task)

    def others(self, previous: int | None) -> list[int]:
        """What is held beside one hold of a task."""
        others = list(self.held)
        if previous is not None:
            others.remove(previous)
        return others

    @rule()
    def arrive(self) -> None:
        self.blocks.publish(self.coming)
        self.coming.clear()

    @rule(which=st.integers(0, 10))
    def let_go(self, which: int) -> None:
        if self.held:
            self.blocks.release(self.held.pop(which % len(self.held)))

    @rule()
    def evict_all(self) -> None:
        self.blocks.evict(self.blocks.evictable())
        assert resident(self.blocks) == self.kept()

    @rule(count=st.integers(0, PAGES))
    def resize(self, count: int) -> None:
        if count < self.blocks.slots:
            going = min(self.blocks.free + len(self.blocks.evictable()), self.blocks.slots - count)
            assert len(retire(self.blocks, going)) == going
        else:
            self.blocks.restore(count - self.blocks.slots)

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "blocks"):
            return
        self.blocks.check_integrity()
        assert self.kept() <= resident(self.blocks)
        assert set(self.blocks.locked().tolist()) == self.kept()
        for task, need in enumerate(self.needs):
            assert self.blocks.is_resident(task) == (need <= resident(self.blocks))
        assert self.blocks.page_table.ctypes.data == self.address
        assert len(resident(self.blocks)) + len(self.coming) + self.blocks.free == self.blocks.slots
        assert (self.blocks.page_table >= ABSENT).all()


Residency.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestResidency = Residency.TestCase


def test_of_a_number_that_may_name_another_page_nothing_is_remembered() -> None:
    blocks = manager([0, 1], [1, 2])
    for task in (0, 1):
        bring_in(blocks, task)
    with pytest.raises(ValueError, match="resident or loading"):
        blocks.keep_numbers(array(1, 2))
    blocks.evict(array(0))
    blocks.reserve(array(7))
    with pytest.raises(ValueError, match="resident or loading"):
        blocks.keep_numbers(array(1, 2))
    blocks.cancel([7])
    blocks.remove_task(0)
    version = blocks.version
    blocks.keep_numbers(array(1, 2))
    assert blocks.version > version  # a plan made before may load what is now another page
    assert (blocks.ever_loaded, blocks.reloads) == (2, 0)
    bring_in(blocks, blocks.add_task(array(0, 5)))
    assert blocks.reloads == 0
    blocks.check_integrity()

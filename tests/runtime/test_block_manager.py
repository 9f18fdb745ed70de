"""The block manager against a plain model, with its own integrity check after every step."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from weightpager.runtime.block_manager import ABSENT, BlockManager

PAGES, SLOTS = 12, 6

page_sets = st.sets(st.integers(0, PAGES - 1), min_size=1, max_size=SLOTS).map(
    lambda pages: np.array(sorted(pages), np.int64)
)


def load(blocks: BlockManager, pages: np.ndarray) -> None:
    for page in blocks.reserve(pages):
        blocks.publish(page)


def resident(blocks: BlockManager) -> set[int]:
    return set(blocks.resident().tolist())


def array(*pages: int) -> np.ndarray:
    return np.array(pages, np.int64)


def test_least_recently_used_pages_go_first() -> None:
    blocks = BlockManager(PAGES, 3)
    load(blocks, array(0, 1, 2))
    for page in (1, 0, 2):
        blocks.touch(array(page))
    plan = blocks.plan(array(5, 6))
    assert plan is not None
    assert plan.evict.tolist() == [1, 0]
    assert plan.prepare.tolist() == [5, 6]


def test_the_old_task_goes_only_as_far_as_it_must_and_only_after_all_else() -> None:
    blocks = BlockManager(PAGES, 4)
    load(blocks, array(0, 1, 2, 9))
    old = array(0, 1, 2)
    blocks.lock(old)
    plan = blocks.plan(array(2, 3, 4), release=old)
    assert plan is not None
    assert plan.evict.tolist() == [9]
    assert plan.prepare.tolist() == [3]
    assert plan.commit.tolist() == [4]
    assert len(plan.release) == 1
    assert plan.release[0] in (0, 1)


def test_what_else_is_locked_leaves_out_only_what_the_leaving_task_alone_holds() -> None:
    blocks = BlockManager(PAGES, 4)
    blocks.lock(array(0, 1))
    blocks.lock(array(1, 2))
    assert blocks.locked().tolist() == [0, 1, 2]
    assert blocks.locked(beside=array(0, 1)).tolist() == [1, 2]


def test_pages_that_another_holder_locks_are_not_released() -> None:
    blocks = BlockManager(PAGES, 3)
    load(blocks, array(0, 1, 2))
    blocks.lock(array(0, 1, 2))
    blocks.lock(array(0))
    assert blocks.plan(array(3, 4, 5), release=array(0, 1, 2)) is None
    plan = blocks.plan(array(3, 4), release=array(0, 1, 2))
    assert plan is not None
    assert plan.release.tolist() == [1, 2]


def test_misuse_is_refused() -> None:
    blocks = BlockManager(PAGES, 2)
    load(blocks, array(0))
    blocks.lock(array(0))
    with pytest.raises(ValueError, match="unlocked"):
        blocks.evict(array(0))
    with pytest.raises(ValueError, match="resident"):
        blocks.evict(array(1))
    with pytest.raises(ValueError, match="absent"):
        blocks.reserve(array(0))
    with pytest.raises(ValueError, match="locked"):
        blocks.unlock(array(1))


class Residency(RuleBasedStateMachine):
    """Random plans carried out, some of them failing half-way."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(PAGES, SLOTS)
        self.held: list[np.ndarray] = []
        self.address = self.blocks.page_table.ctypes.data

    @rule(need=page_sets, fail_after=st.one_of(st.none(), st.integers(0, 3)))
    def bring_in(self, need: np.ndarray, fail_after: int | None) -> None:
        locked = {int(page) for held in self.held for page in held}
        plan = self.blocks.plan(need)
        if plan is None:
            assert len(locked | set(need.tolist())) > SLOTS
            return
        assert not set(plan.evict.tolist()) & (locked | set(need.tolist()))
        assert plan.prepare.tolist() == [page for page in need if page not in resident(self.blocks)]
        assert not len(plan.commit)
        self.blocks.evict(plan.evict)
        slots = self.blocks.reserve(plan.prepare)
        for number, page in enumerate(slots):
            if fail_after is not None and number >= fail_after:
                break
            self.blocks.publish(page)
        self.blocks.cancel_reserved()
        if set(need.tolist()) <= resident(self.blocks):
            self.blocks.lock(need)
            self.held.append(need)

    @rule(which=st.integers(0, 10))
    def let_go(self, which: int) -> None:
        if self.held:
            self.blocks.unlock(self.held.pop(which % len(self.held)))

    @rule()
    def evict_all(self) -> None:
        self.blocks.evict(self.blocks.evictable())
        assert resident(self.blocks) == {int(page) for held in self.held for page in held}

    @invariant()
    def sound(self) -> None:
        self.blocks.check_integrity()
        assert {int(page) for held in self.held for page in held} <= resident(self.blocks)
        assert self.blocks.page_table.ctypes.data == self.address
        assert len(resident(self.blocks)) <= SLOTS
        assert (self.blocks.page_table >= ABSENT).all()


Residency.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestResidency = Residency.TestCase

"""What is prefetched: against plain statements of what a plan must be."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.pages import Occupancy
from weightpager.runtime.planning.prefetch_planner import MARGIN, plan_prefetch


def flags(*pages: int, count: int = 8) -> np.ndarray:
    return np.isin(np.arange(count), pages)


def test_the_most_likely_pages_come_first_and_early_layers_before_late_ones() -> None:
    occupancy = Occupancy(flags(), flags(), flags(), free=3)
    plan = plan_prefetch(occupancy, np.array([0, 0.2, 0.5, 0.5, 0, 0.1, 0.2, 0]))
    assert plan.load.tolist() == [2, 3, 1]
    assert plan.evict.tolist() == []


def test_the_least_likely_page_goes_and_of_equals_the_latest_layer() -> None:
    occupancy = Occupancy(flags(4, 5, 6, 7), flags(), flags(7), free=1)
    plan = plan_prefetch(occupancy, np.array([0.9, 0.8, 0.7, 0.1, 0.3, 0.0, 0.0, 0.0]))
    assert plan.load.tolist() == [0, 1, 2]
    assert plan.evict.tolist() == [6, 5]
    assert plan.first(2).load.tolist() == [0, 1]
    assert plan.first(2).evict.tolist() == [6]


def test_nothing_goes_for_what_is_hardly_likelier() -> None:
    occupancy = Occupancy(flags(4), flags(), flags(), free=0)
    assert not len(plan_prefetch(occupancy, np.array([0.52, 0, 0, 0, 0.5, 0, 0, 0])).load)


def test_what_is_loading_is_not_loaded_again() -> None:
    occupancy = Occupancy(flags(), flags(0), flags(), free=2)
    assert plan_prefetch(occupancy, np.array([1.0, 0.5, 0, 0, 0, 0, 0, 0])).load.tolist() == [1]


@given(
    st.lists(
        st.tuples(st.sampled_from(["absent", "loading", "resident", "locked"]), st.integers(0, 10)),
        min_size=1,
        max_size=30,
    ),
    st.integers(0, 12),
)
def test_any_plan_takes_what_is_worth_most_for_what_is_worth_least(pages: list[tuple[str, int]], free: int) -> None:
    state = np.array([state for state, _ in pages])
    worth = np.array([worth for _, worth in pages], float)
    occupancy = Occupancy(np.isin(state, ["resident", "locked"]), state == "loading", state == "locked", free)
    plan = plan_prefetch(occupancy, worth)
    assert (state[plan.load] == "absent").all()
    assert (state[plan.evict] == "resident").all()
    assert len(set(plan.load.tolist())) == len(plan.load)
    assert len(set(plan.evict.tolist())) == len(plan.evict)
    assert len(plan.load) <= free + len(plan.evict)
    assert (worth[plan.load] > 0).all()
    assert len(plan.load) >= min(free, int(((state == "absent") & (worth > 0)).sum()))
    if len(plan.evict):
        assert worth[plan.load].min() > (1 + MARGIN) * worth[plan.evict].max()
    left_out = np.setdiff1d(np.flatnonzero((state == "absent") & (worth > 0)), plan.load)
    stays = np.setdiff1d(np.flatnonzero(state == "resident"), plan.evict)
    if len(left_out) and len(stays):
        assert worth[left_out].max() <= (1 + MARGIN) * worth[stays].min()


@given(st.integers(0, 2**20), st.integers(1, 70), st.integers(1, 40))
def test_pages_are_worth_the_sum_of_their_tasks(seed: int, tasks: int, pages: int) -> None:
    random = np.random.default_rng(seed)
    needed = random.random((pages, tasks)) < 0.4
    blocks = BlockManager([np.flatnonzero(needed[:, task]) for task in range(tasks)], pages, pages)
    worth = random.random(tasks)
    np.testing.assert_allclose(blocks.worth(worth), needed @ worth)
    blocks.remove_task(0)
    blocks.add_task(np.array([0]))
    needed[:, 0] = False
    more = np.hstack([needed, np.arange(pages)[:, None] == 0])
    np.testing.assert_allclose(blocks.worth(np.append(worth, 0.5)), more @ np.append(worth, 0.5))

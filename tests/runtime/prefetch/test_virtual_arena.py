"""Virtual time: waits by hand, prefetches until the switch comes, and whether they pay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.runtime.planning.prefetch_planner import BATCH_BYTES
from weightpager.runtime.prefetch.prefetch_trial import PrefetchTrial, Savings
from weightpager.runtime.prefetch.virtual_arena import VirtualArena
from weightpager.store import StorageModel

PAGE = 1 << 20  # as long as the longest read: one page a read
STORAGE = StorageModel(bytes_per_second=PAGE, seconds_per_read=0.0)  # a page a second


def arena(
    *needs: list[int], slots: int, held: tuple[int, ...] = (), page_bytes: int = PAGE, reads: int = 8
) -> VirtualArena:
    pages, arrays = 1 + max(max(need) for need in needs), [np.array(need, np.int64) for need in needs]
    return VirtualArena(arrays, pages, slots, page_bytes, STORAGE, lambda _: 1, held, reads=reads)


def one(task: int, tasks: int) -> np.ndarray:
    return np.eye(tasks)[task]


def test_a_switch_waits_for_what_is_missing() -> None:
    found = arena([0, 1, 2], [1, 2, 3], slots=4)
    assert found.switch(0, None).seconds == 3
    assert found.switch(1, None).seconds == 1
    assert found.switch(0, None).seconds == 0


def test_without_room_for_both_the_old_task_is_given_up() -> None:
    found = arena([0, 1, 2], [1, 3, 4], slots=3)
    found.switch(0, None)
    assert found.switch(1, None).pages == 2
    assert found.blocks.resident().tolist() == [1, 3, 4]


def test_what_comes_during_a_dwell_is_not_waited_for() -> None:
    found = arena([0], [1, 2, 3, 4, 5], slots=6)
    found.switch(0, None)
    found.dwell(2.0, lambda _: one(1, 2))
    assert found.blocks.resident().tolist() == [0, 1, 2]
    # The reads of pages 3, 4 and 5 were in flight.
    assert found.switch(1, None).seconds == 3
    assert (found.counts.hits, found.counts.late, found.counts.misses) == (2, 3, 1)


@pytest.mark.parametrize(
    ("reads", "page_bytes", "late"), [(2, PAGE, 2), (8, PAGE // 4, 8), (8, PAGE, 4), (8, 3 * PAGE, 2)]
)
def test_as_many_reads_are_in_flight_as_an_engine_makes(reads: int, page_bytes: int, late: int) -> None:
    """No more than it is told, and no other one while there are 4 MiB."""
    found = arena([0], list(range(1, 13)), slots=13, page_bytes=page_bytes, reads=reads)
    found.switch(0, None)
    found.dwell(1e-3, lambda _: one(1, 2))
    assert found.blocks.loading == late
    found.switch(1, None)
    assert (found.counts.late, found.counts.misses) == (late, 1 + 12 - late)


def test_reads_in_flight_stay_so_where_the_dwell_is_rounded() -> None:
    """The first batch ends at a time from which the rest of the dwell, rounded twice, falls short of the switch."""
    first, seconds = 0.25 + 2.0**-54, 0.875 + 2.0**-53
    assert first + (seconds - first) < seconds
    found = arena([0], [1], list(range(2, 12)), slots=12)
    found.switch(0, None)
    found.storage = StorageModel(bytes_per_second=1e300, seconds_per_read=first)
    found.dwell(seconds, lambda elapsed: one(2 if elapsed else 1, 3))
    assert found.blocks.loading == 4
    assert found.switch(2, None).pages == 4
    assert found.blocks.is_resident(2)
    assert found.blocks.loading == 0


def test_reads_in_flight_for_another_task_are_waited_for_and_their_pages_stay() -> None:
    found = arena([0], [1, 2, 3, 4, 5, 6], [7], slots=8)
    found.switch(0, None)
    found.dwell(0.5, lambda _: one(1, 3))
    assert found.switch(2, None).seconds == 3.5 + 1
    assert found.blocks.resident().tolist() == [0, 1, 2, 3, 4, 7]
    assert found.counts.late == 0


def test_what_goes_unused_is_wasted() -> None:
    found = arena([0, 1], [2, 3], [4, 5], slots=4)
    found.switch(0, None)
    found.dwell(10, lambda _: one(1, 3))
    found.switch(2, None)
    assert found.counts.wasted == 2
    assert found.counts.hit_rate == 0


def test_nothing_is_loaded_where_nothing_can_be_said() -> None:
    found = arena([0], [1], slots=2)
    found.switch(0, None)
    found.dwell(100, lambda _: None)
    assert found.blocks.resident().tolist() == [0]


def test_a_forecast_is_asked_again_as_time_goes_by() -> None:
    asked: list[float] = []
    found = arena([0], [1], slots=2)
    found.switch(0, None)
    found.dwell(60, lambda elapsed: asked.append(elapsed))
    assert asked[0] == 0
    assert 10 < len(asked) < 40


def test_tasks_that_never_leave_take_their_room() -> None:
    found = arena([0], [1], [2], slots=2, held=(0,))
    assert found.switch(1, None).seconds == 1
    assert found.switch(2, None).seconds == 1
    assert found.switch(0, None).seconds == 0
    assert found.blocks.resident().tolist() == [0, 2]


def test_a_task_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="fits into the arena"):
        arena([0, 1, 2], slots=2).switch(0, None)


@given(
    st.lists(st.sets(st.integers(0, 11), min_size=1, max_size=5), min_size=2, max_size=5),
    st.lists(st.tuples(st.integers(0, 4), st.floats(0, 8), st.integers(0, 4)), max_size=30),
    st.integers(5, 12),
)
def test_after_any_history_the_task_is_there_and_no_slot_is_lost(
    needs: list[set[int]], history: list[tuple[int, float, int]], slots: int
) -> None:
    found = arena(*map(sorted, needs), slots=slots)
    for task, dwell, guess in history:
        task %= len(needs)
        wait = found.switch(task, None)
        assert found.blocks.is_resident(task)
        assert wait.seconds >= wait.pages
        found.blocks.check_integrity()
        found.dwell(dwell, lambda _, guess=guess: one(guess % len(needs), len(needs)))
        assert len(found.blocks.resident()) <= slots
    counts = found.counts
    assert counts.loaded >= counts.hits + counts.wasted


def test_batches_leave_room_for_newer_forecasts() -> None:
    pages = BATCH_BYTES // PAGE
    asked: list[float] = []
    found = arena([0], list(range(1, 3 * pages + 1)), slots=3 * pages + 1)
    found.switch(0, None)

    def uses(elapsed: float) -> np.ndarray:
        asked.append(elapsed)
        return one(1, 2)

    found.dwell(2.5 * pages, uses)
    assert asked == [0, pages, 2 * pages]


def played(guess_right: bool, trial: PrefetchTrial, switches: int) -> None:
    """A round of three tasks of which two fit at a time."""
    for number in range(switches):
        task = number % 3
        guess = task if guess_right else (task + 1) % 3
        trial.dwell(10.0, lambda _, guess=guess: one(guess, 3), STORAGE)
        trial.switch(task, None)


def test_loading_ahead_rests_while_it_costs_more_than_it_saves() -> None:
    trial = PrefetchTrial(lambda: arena([0, 1], [2, 3], [4, 5], slots=4))
    assert trial.pays
    played(guess_right=True, trial=trial, switches=30)
    assert trial.pays
    # Tasks 0 and 1 alternate: both would stay, if it weren't for what is prefetched in vain.
    for number in range(10):
        trial.dwell(10.0, lambda _: one(2, 3), STORAGE)
        trial.switch(number % 2, None)
    assert not trial.pays
    played(guess_right=True, trial=trial, switches=30)
    assert trial.pays


def test_trials_of_one_budget_stand_and_fall_together() -> None:
    savings = Savings()
    one_bundle, other = (PrefetchTrial(lambda: arena([0, 1], [2, 3], [4, 5], slots=4), savings) for _ in range(2))
    played(guess_right=False, trial=one_bundle, switches=15)
    assert not one_bundle.pays
    assert not other.pays
    played(guess_right=True, trial=other, switches=30)
    assert one_bundle.pays


def test_a_switch_to_a_task_that_had_room_under_another_budget_says_nothing() -> None:
    trial = PrefetchTrial(lambda: arena([0, 1], [2, 3, 4], [5], slots=3, held=(2,)))
    trial.dwell(1.0, lambda _: None, STORAGE)
    trial.switch(0, None)
    before = trial.pays
    trial.dwell(1.0, lambda _: one(0, 3), STORAGE)
    trial.switch(1, None)
    assert trial.pays == before
    played(guess_right=True, trial=trial, switches=30)

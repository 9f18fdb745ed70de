"""What is expected to be used: the next task, and what follows it the more, the less time there will be to load it."""

import numpy as np
import pytest

from weightpager.runtime.prediction.markov import MarkovPredictor
from weightpager.runtime.prediction.planner import CallablePredictor
from weightpager.runtime.prediction.task_monitor import DISCOUNT, expected_uses, expected_uses_after
from weightpager.runtime.prefetch.expected_uses import ExpectedUses


def after_rounds(load_seconds: float) -> ExpectedUses:
    """A round 0, 1, 2, 3 in which task 1 is left at once and all others stay for ten seconds."""
    expected = ExpectedUses.blank(MarkovPredictor(4), 4, load_seconds)
    now = 0.0
    for _ in range(30):
        for task in range(4):
            expected.observe(task, now)
            now += 0.01 if task == 1 else 10.0
    expected.observe(0, now)
    return expected


def test_the_next_task_counts_most() -> None:
    uses = after_rounds(1.0).uses(300.0)
    assert uses is not None
    assert uses.argmax() == 1
    assert uses[1] == pytest.approx(1.0, abs=0.1)


def test_what_follows_a_short_visit_counts_almost_as_much_and_what_follows_a_long_one_little() -> None:
    uses = after_rounds(1.0).uses(300.0)
    assert uses is not None
    assert uses[2] > 0.6
    assert uses[3] < 0.2


def test_where_loading_takes_long_the_further_future_counts_more() -> None:
    fast, slow = after_rounds(1.0).uses(300.0), after_rounds(100.0).uses(300.0)
    assert fast is not None
    assert slow is not None
    assert slow[3] > 4 * fast[3]


def test_the_next_task_counts_most_also_before_any_visit_has_ended() -> None:
    planner = CallablePredictor(lambda _: {"c": 1.0}, "abcd", MarkovPredictor(4))
    expected = ExpectedUses.blank(planner, 4, 1.0)
    expected.observe(0, 0.0)
    uses = expected.uses(1.0)
    assert uses is not None
    assert uses[2] > 3 * max(uses[1], uses[3])


def test_forecasts_are_scored() -> None:
    score = after_rounds(1.0).score
    assert score.forecasts == 120
    assert score.hit_rate > 0.9


def test_nothing_is_expected_of_a_single_task() -> None:
    expected = ExpectedUses.blank(MarkovPredictor(1), 1, 1.0)
    expected.observe(0, 0.0)
    assert expected.uses(1.0) is None


def test_uses_sum_over_all_switches_ahead() -> None:
    switches = np.array([[0, 3, 1], [2, 0, 2], [4, 1, 0]])
    following, discount = np.array([0.0, 0.7, 0.3]), np.array([0.2, 0.5, 0.8])
    chances = switches + (1 - np.eye(3)) / 2
    chances = chances / chances.sum(1, keepdims=True)
    total, step = np.zeros(3), following
    for _ in range(200):
        total, step = total + step, (step * discount) @ chances
    np.testing.assert_allclose(expected_uses(switches, following, discount), total)


def test_a_round_expects_each_task_the_later_the_further_away() -> None:
    switches = 1e9 * np.roll(np.eye(4), 1, axis=1)
    found = expected_uses_after(switches, 0)
    lap = 1 / (1 - DISCOUNT**4)
    assert found == pytest.approx(lap * DISCOUNT ** np.array([3.0, 0.0, 1.0, 2.0]), rel=1e-6)


def test_it_is_the_sum_over_all_switches_ahead() -> None:
    switches = np.random.default_rng(0).integers(0, 9, (5, 5))
    counts = switches + (1 - np.eye(5)) / 4
    chances = counts / counts.sum(1, keepdims=True)
    ahead, weight, expected = np.eye(5)[2], 1.0, np.zeros(5)
    for _ in range(60):
        ahead = ahead @ chances
        expected += weight * ahead
        weight *= DISCOUNT
    assert expected_uses_after(switches, 2) == pytest.approx(expected)


def test_tasks_of_which_nothing_is_known_are_all_alike() -> None:
    found = expected_uses_after(np.zeros((3, 3), np.int64), 1)
    assert found[0] == pytest.approx(found[2])
    assert expected_uses_after(np.zeros((1, 1), np.int64), 0).tolist() == [0.0]

"""Expected uses of tasks, by how they have followed each other."""

import numpy as np
import pytest

from weightpager.runtime.prefetch.reuse import DISCOUNT, expected_reuse


def test_a_round_expects_each_task_the_later_the_further_away() -> None:
    switches = 1e9 * np.roll(np.eye(4), 1, axis=1)
    found = expected_reuse(switches, 0)
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
    assert expected_reuse(switches, 2) == pytest.approx(expected)


def test_tasks_of_which_nothing_is_known_are_all_alike() -> None:
    found = expected_reuse(np.zeros((3, 3), np.int64), 1)
    assert found[0] == pytest.approx(found[2])
    assert expected_reuse(np.zeros((1, 1), np.int64), 0).tolist() == [0.0]

"""No task loses a paged weight altogether."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from weightpager.compiler.alignment.problem import AlignmentProblem, floors
from weightpager.compiler.alignment.structure_aligner import align
from weightpager.transitions import Transitions

SIZES = (100, 300, 50)
SAME = np.full((450, 3), -1, np.int8)
RATE = Transitions.uniform("abc").switch_rate()


def saliency(weak: float) -> np.typing.NDArray[np.float64]:
    """[450, 3]; the middle weight's is ``weak`` times the others'."""
    drawn = np.random.default_rng(0).lognormal(size=(450, 3))
    drawn[100:400] *= weak
    return drawn


def kept(keep: np.typing.NDArray[np.bool_]) -> np.typing.NDArray[np.int64]:
    return np.stack([part.sum(0) for part in np.split(keep, np.cumsum(SIZES)[:-1])])


def test_a_floor_is_a_fiftieth_of_the_weight_and_at_least_a_block() -> None:
    found = floors(SIZES, np.array([200, 45, 9]))
    assert found.tolist() == [[2, 2, 1], [6, 6, 3], [1, 1, 0]]
    assert (found.sum(0) * 2 <= [200, 45, 9]).all()


def test_floors_that_hold_anyway_change_nothing() -> None:
    budgets = np.array([120, 90, 200])
    plain = AlignmentProblem(saliency(1.0), budgets, RATE, 0.5)
    free = align(plain)
    found = align(replace(plain, versions=SAME, sizes=SIZES))
    assert (found.keep == free.keep).all()
    assert (found.objective, found.bound) == (free.objective, free.bound)


@pytest.mark.parametrize("strength", [0.0, 0.5, 20.0, np.inf])
@pytest.mark.parametrize("budgets", [[100, 100, 100], [40, 80, 100]], ids=["equal", "mixed"])
def test_a_weak_weight_keeps_its_floor(strength: float, budgets: list[int]) -> None:
    values, wanted = saliency(1e-3), np.array(budgets)
    plain = AlignmentProblem(values, wanted, RATE, strength)
    free = align(plain)
    assert (kept(free.keep)[1] < 3).all()
    found = align(replace(plain, versions=SAME, sizes=SIZES))
    assert (kept(found.keep) >= floors(SIZES, wanted)).all()
    assert found.keep.sum(0).tolist() == budgets
    assert found.objective <= found.bound * (1 + 1e-9)
    assert found.bound <= free.bound
    assert found.gap <= 1e-3
    loads = sum(RATE[t, u] * (found.keep[:, u] & ~found.keep[:, t]).sum() for t in range(3) for u in range(3) if t != u)
    if np.isfinite(strength):
        assert found.objective == pytest.approx(values[found.keep].sum() - strength * loads)
    else:
        assert found.objective == pytest.approx(values[found.keep].sum())
        assert loads == pytest.approx(
            sum(RATE[t, u] * max(0, budgets[u] - budgets[t]) for t in range(3) for u in range(3))
        )


def test_without_an_alignment_the_floors_are_the_best_blocks() -> None:
    values, budgets = saliency(1e-3), np.array([100, 100, 100])
    found = align(AlignmentProblem(values, budgets, RATE, 0.0, SAME, SIZES))
    for task in range(3):
        best = np.argsort(-values[100:400, task])[:6]
        assert found.keep[100 + best, task].all()


def test_an_evenness_raises_floors_to_its_share_of_the_budget() -> None:
    budgets = np.array([200, 45, 9])
    raised = floors(SIZES, budgets, 0.5)
    assert raised.tolist() == [[22, 5, 1], [66, 15, 3], [11, 2, 0]]
    assert (raised >= floors(SIZES, budgets)).all()
    found = align(AlignmentProblem(saliency(1e-3), budgets, RATE, 0.5, SAME, SIZES, 0.5))
    assert (kept(found.keep) >= raised).all()
    assert found.keep.sum(0).tolist() == budgets.tolist()


def test_floors_hold_where_each_round_displaces_the_next_weight() -> None:
    weights = [np.zeros(100), *(np.repeat([strength, 0.0], [2, 98]) for strength in range(1, 12)), np.full(100, 1e2)]
    values, budgets = np.concatenate(weights)[:, None], np.array([122])
    problem = AlignmentProblem(values, budgets, np.zeros((1, 1)), 0.0, sizes=(100,) * 13)
    found = align(problem)
    by_weight = found.keep.reshape(13, 100).sum(1)
    assert (by_weight >= problem.floors[:, 0]).all()
    assert found.keep.sum() == 122
    assert found.objective == values[found.keep].sum()
    assert found.objective <= found.bound

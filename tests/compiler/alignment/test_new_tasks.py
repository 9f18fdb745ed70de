"""New tasks choose their blocks beside masks that stay."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.compiler.alignment.problem import AlignmentProblem, floors
from weightpager.compiler.alignment.structure_aligner import align_new_tasks


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3).filter(lambda sizes: sum(sizes) <= 8),
    st.integers(1, 3),
    st.floats(0, 4),
    st.integers(0, 2**32 - 1),
)
def test_one_new_tasks_choice_is_the_best(sizes: list[int], old: int, strength: float, seed: int) -> None:
    random, blocks = np.random.default_rng(seed), sum(sizes)
    saliency, fixed = random.random((blocks, 1)), random.random((blocks, old)) < 0.5
    rate, budget = random.random((old + 1, old + 1)), int(random.integers(1, blocks + 1))

    def objective(keep: np.ndarray) -> float:
        everybody = np.concatenate([fixed, keep[:, None]], 1)
        loads = sum(
            rate[t, u] * (everybody[:, u] & ~everybody[:, t]).sum()
            for t, u in itertools.permutations(range(old + 1), 2)
        )
        return float(saliency[keep, 0].sum() - strength * loads)

    def above_floors(keep: np.ndarray) -> bool:
        kept = [part.sum() for part in np.split(keep, np.cumsum(sizes)[:-1])]
        return bool((kept >= floors(sizes, np.array([budget]))[:, 0]).all())

    problem = AlignmentProblem(saliency, np.array([budget]), rate, strength, sizes=tuple(sizes))
    found = align_new_tasks(problem, fixed)[:, 0]
    assert found.sum() == budget
    assert above_floors(found)
    others = (np.isin(np.arange(blocks), chosen) for chosen in itertools.combinations(range(blocks), budget))
    assert objective(found) >= max(map(objective, filter(above_floors, others))) - 1e-9


@pytest.mark.parametrize("strength", [0.0, 1.0, np.inf])
def test_a_new_task_keeps_something_of_every_weight(strength: float) -> None:
    sizes, drawn = [100, 300, 50], np.random.default_rng(0)
    saliency = drawn.lognormal(size=(450, 2))
    saliency[100:400] *= 1e-3
    fixed = np.zeros((450, 1), bool)
    fixed[:100] = True  # the old task has nothing of the weak weight either
    rate = drawn.random((3, 3))
    found = align_new_tasks(AlignmentProblem(saliency, np.array([100, 60]), rate, strength, sizes=tuple(sizes)), fixed)
    assert found.sum(0).tolist() == [100, 60]
    kept = np.stack([part.sum(0) for part in np.split(found, [100, 400])])
    assert (kept >= floors(sizes, np.array([100, 60]))).all()
    assert kept[1].tolist() == [6, 6]


def test_infinite_alignment_takes_what_is_there() -> None:
    fixed = np.array([[True], [False], [True], [False]])
    saliency = np.array([[0.1], [9.0], [0.2], [8.0]])
    rate = np.array([[0.0, 0.5], [0.5, 0.0]])
    keep = align_new_tasks(AlignmentProblem(saliency, np.array([3]), rate, float("inf"), sizes=(4,)), fixed)
    assert keep[:, 0].tolist() == [True, True, True, False]

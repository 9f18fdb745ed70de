"""Alignment over versions of blocks, against an exact solver."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from weightpager.compiler.alignment.problem import Alignment, AlignmentProblem
from weightpager.compiler.alignment.structure_aligner import align
from weightpager.transitions import Transitions

Floats = npt.NDArray[np.float64]


@dataclass
class Case:
    saliency: Floats  # [B, T]
    versions: npt.NDArray[np.int8]  # [B, T]
    budgets: npt.NDArray[np.int64]
    rate: Floats
    strength: float

    def solve(self) -> Alignment:
        return align(AlignmentProblem(self.saliency, self.budgets, self.rate, self.strength, self.versions))

    def loads(self, before: int, after: int) -> npt.NDArray[np.bool_]:
        """Blocks that are no use to ``after`` though ``before`` keeps them."""
        return np.asarray(self.versions[:, before] != self.versions[:, after])

    def worth(self, keep: npt.NDArray[np.bool_]) -> float:
        total = float(self.saliency[keep].sum())
        for (before, after), rate in np.ndenumerate(self.rate):
            if before != after:
                there = keep[:, before] & ~self.loads(before, after)
                total -= self.strength * rate * int((keep[:, after] & ~there).sum())
        return total


@st.composite
def cases(draw: st.DrawFn) -> Case:
    blocks, tasks = draw(st.integers(2, 8)), draw(st.integers(2, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    versions = np.where(random.random((blocks, tasks)) < 0.5, np.arange(tasks), -1).astype(np.int8)
    budgets = random.integers(1, blocks + 1, tasks)
    rate = Transitions.uniform([str(number) for number in range(tasks)]).switch_rate()
    return Case(np.exp(random.standard_normal((blocks, tasks))), versions, budgets, rate, draw(st.floats(0, 5)))


def optimum(case: Case) -> float:
    """Keep variables x[b, t], then loads z[b, t, u] >= x[b, u] - x[b, t], the last term only in the same version."""
    blocks, tasks = case.saliency.shape
    x = np.arange(blocks * tasks).reshape(blocks, tasks)
    pairs = [(b, t, u) for b in range(blocks) for t in range(tasks) for u in range(tasks) if t != u]
    count = x.size + len(pairs)
    cost = np.concatenate([-case.saliency.ravel(), [case.strength * case.rate[t, u] for _, t, u in pairs]])
    loads, budget = np.zeros((len(pairs), count)), np.zeros((tasks, count))
    for row, (b, t, u) in enumerate(pairs):
        loads[row, [x.size + row, x[b, u]]] = 1, -1
        if case.versions[b, t] == case.versions[b, u]:
            loads[row, x[b, t]] = 1
    for task in range(tasks):
        budget[task, x[:, task]] = 1
    rules = [LinearConstraint(loads, lb=0), LinearConstraint(budget, case.budgets, case.budgets)]
    found = milp(cost, integrality=np.ones(count), bounds=Bounds(0, 1), constraints=rules, options={"mip_rel_gap": 0})
    return -float(found.fun)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_small_cases_against_a_milp_solver(case: Case) -> None:
    found, best = case.solve(), optimum(case)
    assert (found.keep.sum(0) == case.budgets).all()
    assert abs(found.objective - case.worth(found.keep)) < 1e-6 * max(1, abs(best))
    assert found.objective <= best + 1e-6 * max(1, abs(best)) <= found.bound + 2e-6 * max(1, abs(best))
    # A handful of blocks leaves the rounding to whole budgets a few percent.
    assert best - found.objective <= 0.15 * float(case.saliency.sum())


def test_the_same_version_everywhere_is_plain_alignment() -> None:
    random = np.random.default_rng(0)
    saliency, budgets = random.random((40, 3)), np.array([10, 20, 15])
    rate = Transitions.uniform(["a", "b", "c"]).switch_rate()
    plain = AlignmentProblem(saliency, budgets, rate, 0.5)
    found = align(replace(plain, versions=np.full((40, 3), -1, np.int8)))
    assert (found.keep == align(plain).keep).all()


def test_a_version_of_its_own_is_not_worth_aligning() -> None:
    random = np.random.default_rng(1)
    saliency, budgets = random.random((200, 2)), np.array([100, 100])
    rate = Transitions.uniform(["a", "b"]).switch_rate()
    versions = np.full((200, 2), -1, np.int8)
    versions[:100, 1] = 1
    keep = align(AlignmentProblem(saliency, budgets, rate, 1.5, versions)).keep
    overlap = (keep[:, 0] & keep[:, 1]).sum() / keep[:, 1].sum()
    shared = (keep[100:, 0] & keep[100:, 1]).sum() / keep[100:, 1].sum()
    assert shared > overlap
    # Blocks of its own a task chooses by its saliency alone.
    own, outside = saliency[:100, 1][keep[:100, 1]], saliency[:100, 1][~keep[:100, 1]]
    assert own.min() >= outside.max()


def test_a_boundless_strength_gives_all_tasks_the_same_blocks() -> None:
    random = np.random.default_rng(2)
    versions = np.tile(np.array([-1, 1, 2], np.int8), (30, 1))
    rate = Transitions.uniform(["a", "b", "c"]).switch_rate()
    keep = align(AlignmentProblem(random.random((30, 3)), np.full(3, 10), rate, float("inf"), versions)).keep
    assert (keep == keep[:, :1]).all()

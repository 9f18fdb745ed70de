import warnings
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from weightpager.blocks import MAX_TASKS
from weightpager.bundle.report.page_statistics import overlap_of
from weightpager.compiler.alignment.problem import Alignment, AlignmentProblem
from weightpager.compiler.alignment.structure_aligner import align as aligned
from weightpager.errors import CompileError
from weightpager.transitions import Transitions

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EQUAL = np.full(6, 0.25)
MIXED = np.array([0.1, 0.25, 0.25, 0.5, 0.6, 0.3])


def align(saliency: npt.NDArray[np.floating], budgets: Ints, rate: Floats, strength: float) -> Alignment:
    return aligned(AlignmentProblem(saliency, budgets, rate, strength))


@dataclass
class Case:
    saliency: Floats
    budgets: Ints
    rate: Floats
    strength: float

    def solve(self) -> Alignment:
        return align(self.saliency, self.budgets, self.rate, self.strength)

    def worth(self, keep: npt.NDArray[np.bool_]) -> float:
        """The objective as the contract words it."""
        worth = 0.0
        for block, subset in zip(self.saliency, keep, strict=True):
            worth += block[subset].sum() - self.strength * self.rate[np.ix_(~subset, subset)].sum()
        return worth


def markov_rate(tasks: int, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    names = [str(number) for number in range(tasks)]
    return Transitions.from_trace(names, [names[number] for number in random.integers(0, tasks, 40)]).switch_rate()


def realistic(blocks: int, tasks: int, seed: int = 0, spread: float = 1.5) -> Floats:
    """Log-normal saliencies [blocks, tasks], correlated between tasks, of mean 1."""
    random = np.random.default_rng(seed)
    common, own = random.standard_normal((blocks, 1)), random.standard_normal((blocks, tasks))
    saliency = np.exp(spread * (0.75 * common + 0.66 * own))
    return np.asarray(saliency / saliency.mean(axis=0))


def top(values: Floats, size: int) -> npt.NDArray[np.bool_]:
    chosen = np.zeros(len(values), np.bool_)
    chosen[np.argsort(-values, kind="stable")[:size]] = True
    return chosen


@st.composite
def small_cases(draw: st.DrawFn) -> Case:
    blocks, tasks = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    # Few levels, so that ties are common.
    level = st.sampled_from([0.0, 0.25, 1.0, 1.5, 4.0]) if draw(st.booleans()) else st.floats(0, 10, width=32)
    values = st.lists(level, min_size=blocks * tasks, max_size=blocks * tasks)
    saliency = np.array(draw(values)).reshape(blocks, tasks)
    budgets = np.array(draw(st.lists(st.integers(0, blocks), min_size=tasks, max_size=tasks)))
    rates = st.lists(st.sampled_from([0.0, 0.05, 0.3, 0.5]), min_size=tasks**2, max_size=tasks**2)
    strength = draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 2.0, 50.0]))
    return Case(saliency, budgets, np.array(draw(rates)).reshape(tasks, tasks), strength)


def optimum(case: Case) -> float:
    """The best objective by mixed-integer programming: x[b, t] keeps; y[b, t, u] >= x[b, u] - x[b, t] pays."""
    blocks, tasks = case.saliency.shape
    pairs = list(permutations(range(tasks), 2))
    keeps, pays = blocks * tasks, blocks * len(pairs)
    cost = np.concatenate([-case.saliency.T.ravel()] + [np.full(blocks, case.strength * case.rate[p]) for p in pairs])
    size = np.hstack([np.kron(np.eye(tasks), np.ones(blocks)), np.zeros((tasks, pays))])
    constraints = [LinearConstraint(size, case.budgets, case.budgets)]
    if pairs:
        direction = np.array([np.eye(tasks)[u] - np.eye(tasks)[t] for t, u in pairs])
        loads = np.hstack([np.kron(direction, np.eye(blocks)), -np.eye(pays)])
        constraints.append(LinearConstraint(loads, -np.inf, 0))
    whole = np.concatenate([np.ones(keeps), np.zeros(pays)])
    found = milp(cost, integrality=whole, bounds=Bounds(0, 1), constraints=constraints, options={"mip_rel_gap": 0.0})
    assert found.success, found.message
    return float(-found.fun)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(small_cases())
def test_small_cases_against_a_milp_solver(case: Case) -> None:
    found, best = case.solve(), optimum(case)
    slack = 1e-6 * (1 + case.saliency.sum() + case.strength)
    assert found.keep.sum(axis=0).tolist() == case.budgets.tolist()
    assert found.objective == pytest.approx(case.worth(found.keep), abs=slack)
    assert found.objective <= best + slack
    assert found.bound >= best - slack
    assert found.objective >= best - found.gap * abs(found.bound) - slack


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.5, np.inf])
def test_twenty_tasks(strength: float) -> None:
    budgets = np.resize(MIXED * 600, 20).astype(np.int64)
    found = align(realistic(600, 20), budgets, markov_rate(20, 1), strength)
    assert found.keep.sum(axis=0).tolist() == budgets.tolist()
    assert -1e-9 <= found.gap <= 1e-3


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(small_cases())
def test_small_cases_lose_little(case: Case) -> None:
    """Where budgets cut through a handful of blocks, greedy settling may lose, but less than a block of each task."""
    lost = optimum(case) - case.solve().objective
    assert lost <= case.saliency.max(axis=0).sum() + 1e-6


@pytest.mark.parametrize("spread", [0.7, 1.5, 3.0])
@pytest.mark.parametrize("density", [EQUAL, MIXED], ids=["equal", "mixed"])
@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5, 2.0, 20.0, 1e4, np.inf])
def test_the_gap_of_real_sizes_is_at_most_a_tenth_of_a_percent(spread: float, density: Floats, strength: float) -> None:
    blocks = 2000
    saliency, budgets = realistic(blocks, 6, spread=spread), (density * blocks).astype(np.int64)
    found = align(saliency.astype(np.float32), budgets, markov_rate(6, 1), strength)
    assert found.keep.sum(axis=0).tolist() == budgets.tolist()
    assert -1e-9 * abs(found.bound) <= found.bound - found.objective <= 1e-3 * saliency.sum(axis=0).min()
    assert found.gap <= 1e-3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0], ids=["quantised", "with-zeros", "mostly-zero", "all-zero"])
def test_the_gap_is_small_with_ties_too(share: float) -> None:
    random = np.random.default_rng(3)
    levels = random.integers(1, 4, (1500, 5)) * 1.0
    saliency = levels * (random.random((1500, 5)) >= share)
    for budgets in (np.full(5, 400), np.array([100, 300, 300, 700, 1500])):
        found = align(saliency, budgets, markov_rate(5, 2), 2.0)
        assert found.keep.sum(axis=0).tolist() == budgets.tolist()
        assert found.gap <= 1e-3


def test_nine_tasks_in_several_chunks() -> None:
    found = align(realistic(600, 9), np.full(9, 150), markov_rate(9, 4), 2.0)
    assert found.gap <= 1e-3


@given(st.integers(0, 1000), st.sampled_from([np.float32, np.float64]))
def test_without_strength_each_task_keeps_its_top_blocks(seed: int, dtype: type) -> None:
    random = np.random.default_rng(seed)
    saliency: Floats = random.integers(0, 6, (40, 3)).astype(dtype)
    budgets = random.integers(0, 41, 3)
    found = align(saliency, budgets, markov_rate(3, seed), 0.0)
    for task in range(3):
        assert (found.keep[:, task] == top(saliency[:, task], budgets[task])).all()
    assert found.bound == pytest.approx(found.objective, rel=1e-12)


def test_boundless_strength_shares_the_mask_that_keeps_most() -> None:
    saliency = realistic(500, 6)
    found = align(saliency, np.full(6, 125), markov_rate(6, 0), np.inf)
    best = top(saliency.sum(axis=1), 125)
    assert (found.keep == best[:, None]).all()
    assert found.objective == pytest.approx(saliency[best].sum())


def test_boundless_strength_nests_the_masks_of_unequal_budgets() -> None:
    budgets = np.array([300, 50, 200, 200])
    found = align(realistic(500, 4), budgets, markov_rate(4, 0), np.inf)
    small, middle, other, large = found.keep[:, [1, 2, 3, 0]].T
    assert (middle == other).all()
    assert not (small & ~middle).any()
    assert not (middle & ~large).any()
    assert found.gap <= 1e-3


def test_boundless_and_very_large_strengths_agree() -> None:
    saliency, rate = realistic(400, 4), markov_rate(4, 0)
    budgets = np.array([100, 100, 50, 200])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        large, boundless = (align(saliency, budgets, rate, strength) for strength in (1e200, np.inf))
    assert (large.keep == boundless.keep).all()


def test_overlap_grows_with_strength() -> None:
    saliency, rate = realistic(1152, 6), Transitions.uniform("abcdef").switch_rate()
    strengths = [0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0, np.inf]
    found = [align(saliency, np.full(6, 288), rate, strength) for strength in strengths]
    shared = [overlap_of(each.keep).mean() for each in found]
    kept = [saliency[each.keep].sum() for each in found]
    assert shared == sorted(shared)
    assert kept == sorted(kept, reverse=True)
    assert shared[0] < 0.7
    assert shared[-1] == 1.0


@given(st.permutations(range(5)), st.integers(0, 50), st.booleans())
@settings(max_examples=25, deadline=None)
def test_reordering_the_tasks_reorders_the_masks(order: list[int], seed: int, equal: bool) -> None:
    random = np.random.default_rng(seed)
    saliency, rate = realistic(200, 5, seed), markov_rate(5, seed)
    budgets = np.full(5, 60) if equal else random.integers(0, 201, 5)
    found = align(saliency, budgets, rate, 1.0)
    again = align(saliency[:, order], budgets[order], rate[np.ix_(order, order)], 1.0)
    assert (again.keep == found.keep[:, order]).all()
    assert again.objective == pytest.approx(found.objective, rel=1e-12)
    assert again.bound == pytest.approx(found.bound, rel=1e-12)


@given(st.integers(0, 200), st.sampled_from([0.01, 0.5, 5.0, np.inf]))
@settings(max_examples=25, deadline=None)
def test_tasks_that_are_alike_have_the_same_mask(seed: int, strength: float) -> None:
    saliency = realistic(150, 4, seed)
    saliency[:, 3] = saliency[:, 1]
    found = align(saliency, np.full(4, 40), Transitions.uniform("abcd").switch_rate(), strength)
    assert (found.keep[:, 3] == found.keep[:, 1]).all()


def test_the_same_input_gives_the_same_output() -> None:
    case = Case(realistic(400, 6), np.full(6, 100), markov_rate(6, 5), 0.5)
    first, second = case.solve(), case.solve()
    assert (first.keep == second.keep).all()
    assert (first.objective, first.bound) == (second.objective, second.bound)


def test_the_input_is_left_alone() -> None:
    case = Case(realistic(50, 3), np.array([10, 20, 30]), markov_rate(3, 5), 0.5)
    for array in (case.saliency, case.budgets, case.rate):
        array.flags.writeable = False
    case.solve()


def put(array: npt.NDArray[np.generic], place: tuple[int, ...], value: float) -> npt.NDArray[np.generic]:
    changed: npt.NDArray[np.generic] = array.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"saliency": np.ones(4)}, ValueError, r"expected \[blocks, tasks\], at least one of each, got shape \(4,\)"),
        ({"saliency": np.ones((0, 2))}, ValueError, "at least one of each"),
        ({"budgets": np.array([1, 1, 1])}, ValueError, r"budgets: expected shape \(2,\) for 2 tasks, got \(3,\)"),
        ({"budgets": np.array([1.0, 2.0])}, ValueError, "budgets: expected whole numbers of blocks, got float64"),
        ({"rate": np.ones((2, 3))}, ValueError, "switch_rate: expected shape"),
        ({"rate": -np.ones((2, 2))}, ValueError, "switch_rate: expected finite numbers from 0 up"),
        ({"rate": np.full((2, 2), np.nan)}, ValueError, "switch_rate: expected finite numbers from 0 up"),
        ({"strength": -0.1}, ValueError, r"strength: expected a number from 0 up, got -0\.1"),
        ({"strength": np.nan}, ValueError, "strength: expected a number from 0 up, got nan"),
        ({"saliency": put(np.ones((4, 2)), (2, 1), np.nan)}, CompileError, "block 2, task 1: expected .* got nan"),
        ({"saliency": put(np.ones((4, 2)), (3, 0), np.inf)}, CompileError, "block 3, task 0: expected .* got inf"),
        ({"saliency": put(np.ones((4, 2)), (0, 0), -1)}, CompileError, r"block 0, task 0: expected .* got -1\.0"),
        ({"budgets": np.array([1, 5])}, CompileError, "budget of task 1: expected 0 to 4 blocks, got 5"),
        ({"budgets": np.array([-1, 2])}, CompileError, "budget of task 0: expected 0 to 4 blocks, got -1"),
    ],
)
def test_wrong_input_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    fields: dict[str, object] = {"saliency": np.ones((4, 2)), "budgets": np.array([1, 2]), "rate": np.eye(2)}
    case = Case(**(fields | {"strength": 1.0} | change))  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        case.solve()


def test_too_many_tasks_are_refused() -> None:
    tasks = MAX_TASKS + 1
    with pytest.raises(CompileError, match="expected at most 64 tasks to align, got 65"):
        align(np.ones((2, tasks)), np.ones(tasks, np.int64), np.zeros((tasks, tasks)), 1.0)

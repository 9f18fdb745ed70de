"""Which tasks keep which block: the saliency kept, less the bytes that switches load, under a budget for each task.

``docs/alignment.md`` derives what is computed here. In short: a price per task turns the budgets into costs and makes
the blocks independent of each other; Newton steps find the prices on a dual that is smoothed by a temperature, while
it cools; settling one task after the other then meets the budgets exactly. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from weightpager.errors import CompileError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MAX_ALIGNED_TASKS = 12
"""Every subset of the tasks is scored for every block: 4096 scores a block are the most that is still quick."""

TOLERANCE = 1e-5
"""The search ends at this gap: a hundredth of the 0.1 % that a compile aims at."""

_COOLING, _STAGES = 0.25, 14
_NEWTON_STEPS, _HALVINGS = 20, 10
_DECIDED = 20.0  # temperatures: a block whose best subset leads by more has no other subset above e^-20
_JITTER = 1e-6  # of the mean saliency
_CHUNK = 1 << 15  # scores at a time: they stay in cache, and BLAS starts no threads, which on a busy machine wait


@dataclass(frozen=True, eq=False)
class Alignment:
    """What `align` decided.

    Attributes:
        keep: [B, T], True where the task keeps the block; exactly ``budgets[t]`` blocks for task t.
        objective: what ``keep`` reaches.
        bound: what no masks within these budgets exceed, but for rounding.
    """

    keep: Bools
    objective: float
    bound: float

    @property
    def gap(self) -> float:
        """The most that other masks could gain, as a share of the bound."""
        return max(0.0, self.bound - self.objective) / max(abs(self.bound), float(np.finfo(np.float64).tiny))


def align(
    saliency: npt.NDArray[np.floating], budgets: npt.NDArray[np.integer], switch_rate: Floats, strength: float
) -> Alignment:
    """Choose for every block b the set S_b of tasks that keep it, such that task t keeps ``budgets[t]`` blocks.

    Maximises the saliency kept less the blocks that switches load, with the meaning of ``[...]`` as 1 if true, else 0::

        sum_b [ sum_{t in S_b} saliency[b, t] - strength * sum_{t, u} switch_rate[t, u] [u in S_b and t not in S_b] ]

    The same input gives the same output, and reordering the tasks reorders the masks.

    Args:
        saliency: [B, T], not negative, comparable between tasks.
        budgets: [T], how many blocks each task keeps.
        switch_rate: [T, T], how often a switch leads from t to u; the diagonal is ignored.
        strength: the price of loading one block, in units of saliency. ``inf`` loads the least that the budgets
            allow (equal budgets share one mask, others are nested), and among such masks keeps the most saliency;
            objective and bound then count saliency alone.

    Raises:
        ValueError: the shapes do not fit together, or a rate or the strength is negative or not a number.
        CompileError: there are too many tasks, a saliency is negative or not finite, or a budget is out of range.
    """
    _validate(saliency, budgets, switch_rate, strength)
    by_task = np.ascontiguousarray(saliency.T, np.float64)  # [T, B]
    order = _canonical_order(by_task, budgets, switch_rate)
    problem = _state(by_task[order], budgets[order].astype(np.int64), switch_rate[np.ix_(order, order)], strength)
    kept, dual = _solve(problem)
    unavoidable = np.sum(problem.toll * np.maximum(np.subtract.outer(problem.budgets, problem.budgets), 0))
    objective = _net(problem.saliency, kept, problem.toll)
    keep = np.empty(saliency.shape, np.bool_)
    keep[:, order] = kept.T
    return Alignment(keep, objective, bound=dual - float(unavoidable))


def overlap(keep: Bools, weights: npt.ArrayLike | None = None) -> Floats:
    """What a switch need not load: ``[A, B]`` is (kept by A and by B) / (kept by B), and 1 where B keeps nothing.

    Args:
        keep: [blocks, T] masks.
        weights: [blocks], the bytes of each block; None counts blocks.
    """
    size = np.ones(len(keep)) if weights is None else np.asarray(weights, np.float64)
    if size.shape != keep.shape[:1]:
        raise ValueError(f"weights: expected one for each of {len(keep)} blocks, got shape {size.shape}")
    shared: Floats = np.where(keep, size[:, None], 0.0).T @ keep  # [A, B]
    own = shared.diagonal()
    return np.divide(shared, own, out=np.ones_like(shared), where=own > 0)


# ---- The problem in nested form ----


@dataclass(frozen=True, eq=False)
class _Problem:
    """The problem with every pair's cost moved to the task with the smaller budget.

    With |A_t| and |A_u| fixed, ``|A_u - A_t|`` and ``|A_t - A_u|`` differ by a constant. So a pair need only pay for
    blocks that the smaller mask keeps and the larger one does not; prices then stay at the scale of the saliency
    however strong the alignment.

    Attributes:
        saliency: [T, B].
        budgets: [T].
        toll: [T, T], what a block costs that t keeps and u does not, as the caller states it.
        charge: [T, T], the same in nested form.
        members: [2^T, T], 1.0 where a subset holds the task; task 0 is the highest bit of the subset's index.
        penalty: [2^T], what a block with this subset is charged; inf where a budget of none or all forbids it.
    """

    saliency: Floats
    budgets: Ints
    toll: Floats
    charge: Floats
    members: Floats
    penalty: Floats

    def scores(self, prices: Floats, blocks: slice) -> Floats:
        """What every subset is worth to these blocks after paying the prices [T]: [2^T, blocks]."""
        worth: Floats = self.members @ (self.saliency[:, blocks] - prices[:, None])
        worth -= self.penalty[:, None]
        return worth

    def chunks(self) -> Iterator[slice]:
        return _chunks(self.saliency.shape[1], len(self.members))


def _state(saliency: Floats, budgets: Ints, rate: Floats, strength: float) -> _Problem:
    tasks, blocks = saliency.shape
    rate = np.where(np.eye(tasks, dtype=np.bool_), 0.0, rate)
    charge = _charge(budgets, rate + rate.T, strength, total=float(saliency.sum()))
    members = (np.arange(2**tasks)[:, None] >> np.arange(tasks)[::-1] & 1).astype(np.float64)
    penalty = ((members @ charge) * (1 - members)).sum(axis=1)
    forbidden = members @ (budgets == 0) + (1 - members) @ (budgets == blocks)
    return _Problem(
        saliency=saliency,
        budgets=budgets,
        toll=charge if np.isinf(strength) else strength * rate.T,
        charge=charge,
        members=members,
        penalty=np.where(forbidden > 0, np.inf, penalty),
    )


def _charge(budgets: Ints, pair_rate: Floats, strength: float, total: float) -> Floats:
    """The cost of a pair [T, T], on the task with the smaller budget, or half on each.

    More than all saliency together decides nothing more, and would drown the saliency in rounding.
    """
    ceiling = 2 * total or 1.0
    pair = np.minimum(strength, ceiling / np.where(pair_rate > 0, pair_rate, 1.0)) * pair_rate
    larger = np.sign(np.subtract.outer(budgets, budgets))
    return np.asarray(pair * (1 - larger) / 2)


def _canonical_order(saliency: Floats, budgets: npt.NDArray[np.integer], rate: Floats) -> npt.NDArray[np.intp]:
    """Tasks by budget, ties by what does not depend on the order in which they came."""
    leaving, arriving = (np.sort(side, axis=1).sum(axis=1) for side in (rate, rate.T))
    return np.lexsort((arriving, leaving, saliency.sum(axis=1), budgets))


def _net(saliency: Floats, keep: Bools, toll: Floats) -> float:
    """The saliency that masks [T, B] keep, less ``toll[t, u]`` for each block that t keeps and u does not."""
    mask = keep.astype(np.float64)
    return float(saliency[keep].sum() - np.sum(toll * (mask @ (1 - mask).T)))


def _chunks(blocks: int, subsets: int) -> Iterator[slice]:
    step = max(1, _CHUNK // subsets)
    return (slice(start, start + step) for start in range(0, blocks, step))


# ---- Prices and masks, stage by stage ----


def _solve(problem: _Problem) -> tuple[Bools, float]:
    """The best masks [T, B] found, and an upper bound on all masks, both in nested form."""
    prices = _separate_prices(problem)
    best = _separate_masks(problem)
    value, bound = _net(problem.saliency, best, problem.charge), _dual(problem, prices)
    search = _jittered(problem)
    temperature = float(max(prices.mean(), problem.saliency.mean())) or 1.0
    for _ in range(_STAGES):
        if bound - value <= TOLERANCE * abs(bound):
            break
        prices = _newton(_undecided(search, prices, _DECIDED * temperature), prices, temperature)
        bound = min(bound, _dual(problem, prices))
        masks = _settle(search, prices, temperature)
        reached = _net(problem.saliency, masks, problem.charge)
        if reached > value:
            best, value = masks, reached
        temperature *= _COOLING
    return best, bound


def _separate_masks(problem: _Problem) -> Bools:
    """What each task would keep on its own: exact without an alignment."""
    return np.stack([_largest(row, size) for row, size in zip(problem.saliency, problem.budgets, strict=True)])


def _separate_prices(problem: _Problem) -> Floats:
    """The saliency of the last block that each task would keep on its own; 0 where the budget leaves no choice."""
    blocks = problem.saliency.shape[1]
    return np.array(
        [
            np.partition(row, blocks - size)[blocks - size] if 0 < size < blocks else 0.0
            for row, size in zip(problem.saliency, problem.budgets, strict=True)
        ]
    )


def _jittered(problem: _Problem) -> _Problem:
    """The same problem without ties: among blocks of equal saliency, prices alone could not tell which to keep."""
    tasks, blocks = problem.saliency.shape
    primes = np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37])[:tasks]
    fraction = np.outer(np.sqrt(primes), np.arange(1, blocks + 1)) % 1.0
    return replace(problem, saliency=problem.saliency + _JITTER * problem.saliency.mean() * fraction)


def _largest(values: Floats, size: int) -> Bools:
    """True at the ``size`` largest values; among equal ones the first."""
    if size == 0:
        return np.zeros(len(values), np.bool_)
    least = np.partition(values, len(values) - size)[len(values) - size]
    chosen: Bools = values > least
    chosen[np.flatnonzero(values == least)[: size - np.count_nonzero(chosen)]] = True
    return chosen


# ---- The dual: prices ----


def _dual(problem: _Problem, prices: Floats) -> float:
    """An upper bound at any prices: each block takes its best subset, and the budgets are sold at these prices."""
    tops = (problem.scores(prices, some).max(axis=0).sum() for some in problem.chunks())
    return float(prices @ problem.budgets + sum(tops))


def _undecided(problem: _Problem, prices: Floats, margin: float) -> _Problem:
    """The blocks whose best subset leads by less than ``margin``, with the budgets that the others leave."""
    undecided = np.empty(problem.saliency.shape[1], np.bool_)
    taken = np.zeros(len(prices))
    for some in problem.chunks():
        scores = problem.scores(prices, some)
        near = scores >= scores.max(axis=0) - margin  # [2^T, blocks]
        undecided[some] = near.sum(axis=0) > 1
        taken += problem.members.T @ near[:, ~undecided[some]].sum(axis=1)
    budgets = problem.budgets - taken.astype(np.int64)
    return replace(problem, saliency=np.ascontiguousarray(problem.saliency[:, undecided]), budgets=budgets)


class _Smooth(NamedTuple):
    """The dual with a soft maximum, ``temperature * log sum exp(score / temperature)``, and its derivatives."""

    value: float
    gradient: Floats  # [T]
    hessian: Floats  # [T, T]


def _smooth(problem: _Problem, prices: Floats, temperature: float) -> _Smooth:
    members = problem.members
    value, kept = float(prices @ problem.budgets), np.zeros(len(prices))
    mass, product = np.zeros(len(members)), np.zeros((len(prices), len(prices)))
    for some in problem.chunks():
        chance = problem.scores(prices, some)
        value += float(_soften(chance, temperature).sum())
        held = members.T @ chance  # [T, blocks], how likely the task keeps the block
        kept += held.sum(axis=1)
        mass += chance.sum(axis=1)
        product += held @ held.T
    return _Smooth(value, problem.budgets - kept, ((members.T * mass) @ members - product) / temperature)


def _soften(scores: Floats, temperature: float) -> Floats:
    """Turn scores [subsets, blocks] into probabilities, in place; returns their soft maximum [blocks]."""
    top = scores.max(axis=0)
    scores -= top
    scores /= temperature
    np.exp(scores, out=scores)
    total = scores.sum(axis=0)
    scores /= total
    return np.asarray(top + temperature * np.log(total))


def _newton(problem: _Problem, prices: Floats, temperature: float) -> Floats:
    """Minimise the smooth dual; accurate to a tenth of a temperature, which the next stage refines."""
    point = _smooth(problem, prices, temperature)
    for _ in range(_NEWTON_STEPS):
        step = _step(point, 10 * temperature)
        promised = -float(point.gradient @ step)
        if promised <= 0.1 * temperature:
            break
        for _ in range(_HALVINGS):
            ahead = _smooth(problem, prices + step, temperature)
            if ahead.value <= point.value - 1e-4 * promised:
                break
            step, promised = step / 2, promised / 2
        else:
            break
        prices, point = prices + step, ahead
    return prices


def _step(point: _Smooth, longest: float) -> Floats:
    """The Newton step, cut where the curvature that it trusts has long faded."""
    tasks = len(point.gradient)
    ridge = 1e-9 * (np.trace(point.hessian) / tasks + 1 / longest)
    step = -np.linalg.solve(point.hessian + ridge * np.eye(tasks), point.gradient)
    reach = float(np.abs(step).max())
    return np.asarray(step * min(1.0, longest / reach) if reach > 0 else step)


# ---- The primal: masks ----


def _settle(problem: _Problem, prices: Floats, temperature: float) -> Bools:
    """Round to exact budgets, one task after the other, while the unsettled ones are free to follow.

    A task takes the blocks that would lose most without it. Tasks that belong together thus move together, and a
    block's earlier decisions are part of the later ones.
    """
    tasks, blocks = problem.saliency.shape
    masks = np.empty((tasks, blocks), np.bool_)
    settled = np.zeros(blocks, np.int64)  # the subset among the tasks settled so far
    for task, size in enumerate(problem.budgets):
        if 0 < size < blocks:
            masks[task] = _largest(_preference(problem, prices, temperature, task, settled), size)
        else:
            masks[task] = size > 0
        settled = 2 * settled + masks[task]
    return masks


def _preference(problem: _Problem, prices: Floats, temperature: float, task: int, settled: Ints) -> Floats:
    """What each block gains if ``task`` keeps it [B], tasks before it as ``settled`` and tasks after it at will."""
    subsets = len(problem.members) >> task
    members, penalty = problem.members[:subsets, task:], problem.penalty.reshape(-1, subsets)
    worth = problem.saliency[task:] - prices[task:, None]
    gain = np.empty(len(settled))
    for some in _chunks(len(settled), subsets):
        scores = members @ worth[:, some] - penalty[settled[some]].T
        without, within = np.split(scores, 2)
        gain[some] = _soften(within, temperature) - _soften(without, temperature)
    return gain


# ---- The border ----


def _validate(
    saliency: npt.NDArray[np.floating], budgets: npt.NDArray[np.integer], rate: Floats, strength: float
) -> None:
    if saliency.ndim != 2 or 0 in saliency.shape:
        raise ValueError(f"saliency: expected [blocks, tasks], at least one of each, got shape {saliency.shape}")
    tasks = saliency.shape[1]
    for name, array, shape in (("budgets", budgets, (tasks,)), ("switch_rate", rate, (tasks, tasks))):
        if array.shape != shape:
            raise ValueError(f"{name}: expected shape {shape} for {tasks} tasks, got {array.shape}")
    if not np.issubdtype(budgets.dtype, np.integer):
        raise ValueError(f"budgets: expected whole numbers of blocks, got {budgets.dtype}")
    if not (np.isfinite(rate) & (rate >= 0)).all():
        raise ValueError(f"switch_rate: expected finite numbers from 0 up, got {rate.tolist()}")
    if not strength >= 0:
        raise ValueError(f"strength: expected a number from 0 up, got {strength}")
    if tasks > MAX_ALIGNED_TASKS:
        raise CompileError(f"expected at most {MAX_ALIGNED_TASKS} tasks to align, got {tasks}")
    _validate_values(saliency, budgets)


def _validate_values(saliency: npt.NDArray[np.floating], budgets: npt.NDArray[np.integer]) -> None:
    blocks = len(saliency)
    wrong = np.argwhere(~(np.isfinite(saliency) & (saliency >= 0)))
    if len(wrong):
        block, task = wrong[0]
        found = saliency[block, task]
        raise CompileError(f"saliency of block {block}, task {task}: expected a finite number from 0 up, got {found}")
    for task in np.flatnonzero((budgets < 0) | (budgets > blocks)):
        raise CompileError(f"budget of task {task}: expected 0 to {blocks} blocks, got {budgets[task]}")

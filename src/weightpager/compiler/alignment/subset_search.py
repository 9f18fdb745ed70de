"""The search for few tasks: every subset of them is scored for every block.

A price per task makes the blocks independent of each other; Newton steps find the prices on a dual that is smoothed by
a temperature, while it cools; settling one task after the other then meets the budgets exactly. ``docs/alignment.md``
has the derivation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from weightpager.compiler.alignment.nested import DECIDED, NestedProblem, SmoothDual, largest, newton_step
from weightpager.compiler.alignment.problem import Bools, Floats, Ints

_NEWTON_STEPS, _HALVINGS = 20, 10
_CHUNK = 1 << 15  # scores at a time: they stay in cache, and BLAS starts no threads, which on a busy machine wait


@dataclass(frozen=True, eq=False)
class _ScoredSubsets:
    """The problem with every subset of the tasks.

    Attributes:
        saliency, budgets: as in `NestedProblem`.
        members: [2^T, T], 1.0 where a subset holds the task; task 0 is the highest bit of the subset's index.
        penalty: [2^T], what a block with this subset is charged.
    """

    saliency: Floats
    budgets: Ints
    members: Floats
    penalty: Floats

    @classmethod
    def of(cls, problem: NestedProblem) -> _ScoredSubsets:
        tasks = len(problem.budgets)
        members = (np.arange(2**tasks)[:, None] >> np.arange(tasks)[::-1] & 1).astype(np.float64)
        penalty = ((members @ problem.charge) * (1 - members)).sum(axis=1)
        return cls(problem.saliency, problem.budgets, members, penalty)

    def scores(self, prices: Floats, blocks: slice) -> Floats:
        """What every subset is worth to these blocks after paying the prices [T]: [2^T, blocks]."""
        worth: Floats = self.members @ (self.saliency[:, blocks] - prices[:, None])
        worth -= self.penalty[:, None]
        return worth

    def chunks(self) -> Iterator[slice]:
        return _chunks(self.saliency.shape[1], len(self.members))


def _chunks(blocks: int, subsets: int) -> Iterator[slice]:
    step = max(1, _CHUNK // subsets)
    return (slice(start, start + step) for start in range(0, blocks, step))


class SubsetSearch:
    """The search on one problem."""

    def __init__(self, problem: NestedProblem) -> None:
        self._exact = _ScoredSubsets.of(problem)
        self._search = replace(self._exact, saliency=problem.saliency + problem.jitter())

    def bound(self, prices: Floats) -> float:
        """What no masks within the budgets exceed, at any prices: each block takes its best subset."""
        exact = self._exact
        tops = (exact.scores(prices, some).max(axis=0).sum() for some in exact.chunks())
        return float(prices @ exact.budgets + sum(tops))  # the budgets are sold at these prices

    def stage(self, prices: Floats, temperature: float) -> tuple[Floats, list[Bools]]:
        """Better prices, and the masks that settle at them."""
        prices = _newton(_undecided(self._search, prices, DECIDED * temperature), prices, temperature)
        return prices, [_settle(self._search, prices, temperature)]


# ---- The dual: prices ----


def _undecided(problem: _ScoredSubsets, prices: Floats, margin: float) -> _ScoredSubsets:
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


def _smooth(problem: _ScoredSubsets, prices: Floats, temperature: float) -> SmoothDual:
    """The dual with a soft maximum, ``temperature * log sum exp(score / temperature)``, and its derivatives."""
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
    return SmoothDual(value, problem.budgets - kept, ((members.T * mass) @ members - product) / temperature)


def _soften(scores: Floats, temperature: float) -> Floats:
    """Turn scores [subsets, blocks] into probabilities, in place; returns their soft maximum [blocks]."""
    top = scores.max(axis=0)
    scores -= top
    scores /= temperature
    np.exp(scores, out=scores)
    total = scores.sum(axis=0)
    scores /= total
    return np.asarray(top + temperature * np.log(total))


def _newton(problem: _ScoredSubsets, prices: Floats, temperature: float) -> Floats:
    """Minimise the smooth dual; accurate to a tenth of a temperature, which the next stage refines."""
    point = _smooth(problem, prices, temperature)
    for _ in range(_NEWTON_STEPS):
        step = newton_step(point, 10 * temperature)
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


# ---- The primal: masks ----


def _settle(problem: _ScoredSubsets, prices: Floats, temperature: float) -> Bools:
    """Round to exact budgets, one task after the other, while the unsettled ones are free to follow.

    A task takes the blocks that would lose most without it. Tasks that belong together thus move together, and a
    block's earlier decisions are part of the later ones.
    """
    tasks, blocks = problem.saliency.shape
    masks = np.empty((tasks, blocks), np.bool_)
    settled = np.zeros(blocks, np.int64)  # the subset among the tasks settled so far
    for task, size in enumerate(problem.budgets):
        masks[task] = largest(_preference(problem, prices, temperature, task, settled), size)
        settled = 2 * settled + masks[task]
    return masks


def _preference(problem: _ScoredSubsets, prices: Floats, temperature: float, task: int, settled: Ints) -> Floats:
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

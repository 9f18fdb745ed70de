"""An alignment in nested form, and what the search for it is made of. Pure numpy.

``docs/alignment.md`` derives what is computed here. In short: a price per task turns the budgets into costs, on a
problem that is smoothed by a temperature, while it cools.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from weightpager.compiler.alignment.problem import Bools, Floats, Ints

DECIDED = 20.0
"""Temperatures: what leads by more has no rival above e^-20."""

_JITTER = 1e-6  # of the mean saliency


@dataclass(frozen=True, eq=False)
class NestedProblem:
    """Which tasks keep which block, where a pair of tasks is charged on the smaller mask.

    Attributes:
        saliency: [T, B].
        budgets: [T], blocks that each task keeps.
        charge: [T, T], what a block costs that t keeps and u does not.
    """

    saliency: Floats
    budgets: Ints
    charge: Floats

    @classmethod
    def stated(cls, saliency: Floats, budgets: Ints, pair_rate: Floats, strength: float) -> NestedProblem:
        """Move every pair's cost to the task with the smaller budget, or half to each.

        With |A_t| and |A_u| fixed, ``|A_u - A_t|`` and ``|A_t - A_u|`` differ by a constant. So a pair need only pay
        for blocks that the smaller mask keeps and the larger one does not; prices then stay at the scale of the
        saliency however strong the alignment. A charge above the sum of all saliency changes no decision. It is cut
        there, since sums with larger numbers would lose the saliency's digits.
        """
        ceiling = 2 * float(saliency.sum()) or 1.0
        pair = np.minimum(strength, ceiling / np.where(pair_rate > 0, pair_rate, 1.0)) * pair_rate
        larger = np.sign(np.subtract.outer(budgets, budgets))
        return cls(saliency, budgets, pair * (1 - larger) / 2)

    def part(self, tasks: Bools) -> NestedProblem:
        """The problem of some of the tasks."""
        return NestedProblem(self.saliency[tasks], self.budgets[tasks], self.charge[np.ix_(tasks, tasks)])

    def separate_prices(self) -> Floats:
        """The saliency of the last block that each task would keep on its own."""
        blocks = self.saliency.shape[1]
        pairs = zip(self.saliency, self.budgets, strict=True)
        found: Floats = np.array([np.partition(row, blocks - size)[blocks - size] for row, size in pairs])
        return found

    def jitter(self) -> Floats:
        """[T, B], too little to matter: without it prices could not tell blocks of equal saliency apart."""
        size = _JITTER * float(self.saliency.mean())
        return size * np.random.default_rng(0).random(self.saliency.shape)

    def net(self, keep: Bools) -> float:
        """What masks [T, B] are worth."""
        return net(self.saliency, keep, self.charge)


class SmoothDual(NamedTuple):
    """The dual at some prices, smoothed by a temperature, and its derivatives."""

    value: float
    gradient: Floats  # [T]
    hessian: Floats  # [T, T]


def net(saliency: Floats, keep: Bools, toll: Floats) -> float:
    """The saliency that masks [T, B] keep, less ``toll[t, u]`` for each block that t keeps and u does not."""
    mask = keep.astype(np.float64)
    return float(saliency[keep].sum() - np.sum(toll * (mask @ (1 - mask).T)))


def largest(values: Floats, size: int) -> Bools:
    """True at the ``size`` largest values; among equal ones the first."""
    if size == 0:
        return np.zeros(len(values), np.bool_)
    least = np.partition(values, len(values) - size)[len(values) - size]
    chosen: Bools = values > least
    chosen[np.flatnonzero(values == least)[: size - np.count_nonzero(chosen)]] = True
    return chosen


def top_blocks(values: Floats, budgets: Ints) -> Bools:
    """The ``budgets[t]`` largest values of each row t of ``values`` [T, B]."""
    return np.stack([largest(row, size) for row, size in zip(values, budgets, strict=True)])


def newton_step(point: SmoothDual, longest: float) -> Floats:
    """The Newton step, cut where the curvature that it trusts has long faded."""
    tasks = len(point.gradient)
    ridge = 1e-6 * np.trace(point.hessian) / tasks + 1e-9 / longest
    step = -np.linalg.solve(point.hessian + ridge * np.eye(tasks), point.gradient)
    reach = float(np.abs(step).max())
    return np.asarray(step * min(1.0, longest / reach) if reach > 0 else step)

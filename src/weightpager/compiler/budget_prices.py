"""Prices for blocks that make the tasks' budgets come out, and the masks that follow from them.

A price per task turns its budget into a cost; `Flows` make the tasks independent; Newton steps find the prices on a
problem that is smoothed by a temperature, while it cools. ``docs/alignment.md`` has the derivation. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from weightpager.compiler.flows import Bools, Floats, Flows

Budgets = npt.NDArray[np.int64]

TOLERANCE = 1e-5
"""The search ends at this gap: a hundredth of the 0.1 % that a compile aims at."""

_COOLING, _STAGES = 0.25, 14
_NEWTON_STEPS, _HALVINGS = 12, 6
_SWEEPS = 2  # before each Newton step: flows need not be at their best, since any give a bound
_CLIMBS = 5
_DECIDED = 20.0  # temperatures: a task whose balance is further from 0 is decided but for e^-20
_TOGETHER = 1e-3  # temperatures: balances that flows hold together differ by less
_JITTER = 1e-6  # of the mean saliency


@dataclass(frozen=True, eq=False)
class Problem:
    """Which tasks keep which block, in nested form: a pair of tasks is charged on the smaller mask.

    Attributes:
        saliency: [T, B].
        budgets: [T], blocks that each task keeps.
        charge: [T, T], what a block costs that t keeps and u does not.
    """

    saliency: Floats
    budgets: Budgets
    charge: Floats

    def net(self, keep: Bools) -> float:
        """What masks [T, B] are worth."""
        return net(self.saliency, keep, self.charge)


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


def solve(problem: Problem) -> tuple[Bools, float]:
    """The best masks [T, B] found, and an upper bound on all masks within the budgets."""
    prices = _separate_prices(problem)
    best = _top_blocks(problem.saliency, problem.budgets)
    flows = Flows.none(problem.saliency, problem.charge)
    value, bound = problem.net(best), flows.bound(problem.budgets)
    if _close(value, bound):
        return best, bound
    # No price tells blocks of equal saliency apart. The jitter costs the bound nothing: it is taken off again.
    jitter = _JITTER * problem.saliency.mean() * np.random.default_rng(0).random(problem.saliency.shape)
    flows.adjusted[:] += jitter
    temperature = float(max(prices.mean(), problem.saliency.mean())) or 1.0
    for _ in range(_STAGES):
        prices = _stage(flows, problem.budgets, prices, temperature)
        exact = Flows(flows.adjusted - jitter, flows.rounds)
        bound = min(bound, exact.bound(problem.budgets))
        masks = _climb(problem, _settle(flows, problem.budgets))
        reached = problem.net(masks)
        if reached > value:
            best, value = masks, reached
        if _close(value, bound):
            break
        temperature *= _COOLING
    return best, bound


def _close(value: float, bound: float) -> bool:
    return bound - value <= TOLERANCE * abs(bound)


def _top_blocks(values: Floats, budgets: Budgets) -> Bools:
    """What each task would keep on its own: exact without an alignment."""
    return np.stack([largest(row, size) for row, size in zip(values, budgets, strict=True)])


def _separate_prices(problem: Problem) -> Floats:
    """The saliency of the last block that each task would keep on its own."""
    blocks = problem.saliency.shape[1]
    pairs = zip(problem.saliency, problem.budgets, strict=True)
    return np.array([np.partition(row, blocks - size)[blocks - size] for row, size in pairs])


# ---- Prices ----


def _stage(flows: Flows, budgets: Budgets, prices: Floats, temperature: float) -> Floats:
    """Sweep and step on the blocks that this temperature leaves open, until the budgets are nearly met."""
    balance = flows.adjusted - prices[:, None]
    open_blocks = (np.abs(balance) < _DECIDED * temperature).any(0)
    left = budgets - (balance[:, ~open_blocks] > 0).sum(1)
    part = flows.take(open_blocks)
    prices = _newton(part, left, prices, temperature)
    flows.put(open_blocks, part)
    return prices


def _newton(flows: Flows, budgets: Budgets, prices: Floats, temperature: float) -> Floats:
    """Minimise the smooth dual over prices and flows; accurate to a tenth of a temperature."""
    for _ in range(_NEWTON_STEPS):
        flows.sweep(prices, _SWEEPS)
        point = _smooth(flows, budgets, prices, temperature)
        step = _step(point, 10 * temperature)
        if -float(point.gradient @ step) <= 0.1 * temperature:
            break
        for _ in range(_HALVINGS):
            flows.sweep(prices + step, 1)
            if _value(flows, budgets, prices + step, temperature) <= point.value:
                break
            step = step / 2
        prices = prices + step
    return prices


class _Smooth(NamedTuple):
    """``sum_t prices[t] budgets[t] + sum_bt temperature * log(1 + exp(balance / temperature))``, and derivatives."""

    value: float
    gradient: Floats  # [T]
    hessian: Floats  # [T, T]


def _value(flows: Flows, budgets: Budgets, prices: Floats, temperature: float) -> float:
    soft = np.logaddexp(0, (flows.adjusted - prices[:, None]) / temperature)
    return float(prices @ budgets + temperature * soft.sum())


def _smooth(flows: Flows, budgets: Budgets, prices: Floats, temperature: float) -> _Smooth:
    balance = (flows.adjusted - prices[:, None]) / temperature  # [T, B]
    chance = (1 + np.tanh(balance / 2)) / 2  # how likely the task keeps the block
    curvature = chance * (1 - chance) / temperature
    some = curvature.max(0, initial=0) > 1e-6 / temperature
    # Tasks that flows hold together share what a price moves.
    balance, curvature = balance[:, some], curvature[:, some]
    hessian = np.empty((len(prices), len(prices)))
    for task, own in enumerate(balance):
        together = np.abs(balance - own) < _TOGETHER  # [T, B]
        hessian[task] = together @ (curvature[task] / together.sum(0))
    value = _value(flows, budgets, prices, temperature)
    return _Smooth(value, budgets - chance.sum(1), (hessian + hessian.T) / 2)


def _step(point: _Smooth, longest: float) -> Floats:
    """The Newton step, cut where the curvature that it trusts has long faded."""
    tasks = len(point.gradient)
    ridge = 1e-6 * np.trace(point.hessian) / tasks + 1e-9 / longest
    step = -np.linalg.solve(point.hessian + ridge * np.eye(tasks), point.gradient)
    reach = float(np.abs(step).max())
    return np.asarray(step * min(1.0, longest / reach) if reach > 0 else step)


# ---- Masks ----


def _settle(flows: Flows, budgets: Budgets) -> Bools:
    """Masks of exact budgets: the tasks take their blocks of the largest adjusted saliency, smallest budget first.

    What a task took is made known to those that come after it, so that tasks that belong together stay together.
    """
    flows = flows.take(np.ones(flows.adjusted.shape[1], np.bool_))
    masks = np.empty(flows.adjusted.shape, np.bool_)
    for task, size in enumerate(budgets):
        masks[task] = largest(flows.adjusted[task], size)
        flows.settle(task, masks[task])
    return masks


def _climb(problem: Problem, masks: Bools) -> Bools:
    """Improve masks task by task, each taking its best blocks given those of the others."""
    keep = masks.astype(np.float64)
    for _ in range(_CLIMBS):
        before = keep.copy()
        for task, size in enumerate(problem.budgets):
            spared, paid = problem.charge[:, task] @ keep, problem.charge[task] @ (1 - keep)
            keep[task] = largest(problem.saliency[task] + spared - paid, size)
        if (keep == before).all():
            break
    return keep > 0

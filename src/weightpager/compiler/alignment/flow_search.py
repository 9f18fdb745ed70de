"""The search for any number of tasks: flows between the tasks of a block, prices for their budgets.

`Flows` make the tasks independent of each other, a price per task turns its budget into a cost, and Newton steps find
the prices on a problem that is smoothed by a temperature, while it cools. ``docs/alignment.md`` has the derivation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from weightpager.compiler.alignment.flows import Flows
from weightpager.compiler.alignment.problem import (
    COOLING,
    DECIDED,
    STAGES,
    TOLERANCE,
    Bools,
    Floats,
    Ints,
    Problem,
    largest,
    newton_step,
    top_blocks,
)

_NEWTON_STEPS, _HALVINGS = 12, 6
_SWEEPS = 4  # before each Newton step: flows need not be at their best, since any give a bound
_CLIMBS = 5
_TOGETHER = 1e-2  # temperatures: balances that flows hold together differ by less


def solve(problem: Problem) -> tuple[Bools, float]:
    """The best masks [T, B] found, and an upper bound on all masks within the budgets."""
    prices = problem.separate_prices()
    best = problem.separate_masks()
    flows = Flows.none(problem.saliency, problem.charge)
    value, bound = problem.net(best), flows.bound(problem.budgets)
    if _close(value, bound):
        return best, bound
    jitter = problem.jitter()  # the bound is taken without it
    flows.adjusted[:] += jitter
    temperature = float(max(prices.mean(), problem.saliency.mean())) or 1.0
    for _ in range(STAGES):
        prices, settled = _stage(flows, problem.budgets, prices, temperature)
        exact = Flows(flows.adjusted - jitter, flows.rounds)
        bound = min(bound, exact.bound(problem.budgets))
        for masks in (top_blocks(flows.adjusted, problem.budgets), settled):
            climbed = _climb(problem, masks)
            reached = problem.net(climbed)
            if reached > value:
                best, value = climbed, reached
        if _close(value, bound):
            break
        temperature *= COOLING
    return best, bound


def _close(value: float, bound: float) -> bool:
    return bound - value <= TOLERANCE * abs(bound)


# ---- Prices ----


def _stage(flows: Flows, budgets: Ints, prices: Floats, temperature: float) -> tuple[Floats, Bools]:
    """Prices and masks at this temperature, found on the blocks that it leaves open."""
    balance = flows.adjusted - prices[:, None]
    masks = balance > 0
    open_blocks: Bools = np.asarray((np.abs(balance) < DECIDED * temperature).any(0))
    left = budgets - masks[:, ~open_blocks].sum(1)
    if (left < 0).any() or (left > open_blocks.sum()).any():  # the last stage's prices were not good enough to say
        open_blocks[:], left = True, budgets
    part = flows.take(open_blocks)
    prices = _newton(part, left, prices, temperature)
    flows.put(open_blocks, part)
    masks[:, open_blocks] = _settle(part, left, prices)
    return prices, masks


def _newton(flows: Flows, budgets: Ints, prices: Floats, temperature: float) -> Floats:
    """Minimise the smooth dual over prices and flows; accurate to a tenth of a temperature."""
    for _ in range(_NEWTON_STEPS):
        flows.sweep(prices, _SWEEPS)
        point = _smooth(flows, budgets, prices, temperature)
        step = newton_step(point.gradient, point.hessian, 10 * temperature)
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


def _value(flows: Flows, budgets: Ints, prices: Floats, temperature: float) -> float:
    soft = np.logaddexp(0, (flows.adjusted - prices[:, None]) / temperature)
    return float(prices @ budgets + temperature * soft.sum())


def _smooth(flows: Flows, budgets: Ints, prices: Floats, temperature: float) -> _Smooth:
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


# ---- Masks ----


def _settle(flows: Flows, budgets: Ints, prices: Floats) -> Bools:
    """Masks of exact budgets: the tasks take their blocks of the largest adjusted saliency, smallest budget first.

    What a task took is made known to those after it, so that tasks that belong together stay together.
    """
    flows = flows.undecided()
    masks = np.empty(flows.adjusted.shape, np.bool_)
    for task, size in enumerate(budgets):
        masks[task] = largest(flows.adjusted[task], size)
        flows.decide(task, masks[task])
        flows.sweep(prices, 1)
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

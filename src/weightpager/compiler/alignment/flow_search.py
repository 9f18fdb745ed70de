"""The search for any number of tasks: flows between the tasks of a block, prices for their budgets.

`Flows` make the tasks independent of each other, a price per task turns its budget into a cost, and Newton steps find
the prices on a problem that is smoothed by a temperature, while it cools. ``docs/alignment.md`` has the derivation.
"""

from __future__ import annotations

import numpy as np

from weightpager.compiler.alignment.flows import Flows
from weightpager.compiler.alignment.nested import (
    DECIDED,
    NestedProblem,
    SmoothDual,
    largest,
    newton_step,
    top_blocks,
)
from weightpager.compiler.alignment.problem import Bools, Floats, Ints

_NEWTON_STEPS, _HALVINGS = 12, 6
_SWEEPS = 4  # before each Newton step: flows need not be at their best, since any give a bound
_CLIMBS = 5
_TOGETHER = 1e-2  # temperatures: balances that flows hold together differ by less


class FlowSearch:
    """The search on one problem."""

    def __init__(self, problem: NestedProblem) -> None:
        self._problem = problem
        self._jitter = problem.jitter()
        self._flows = Flows.none(problem.saliency + self._jitter, problem.charge)
        self._adjusted = problem.saliency  # [T, B], by the flows, without the jitter

    def bound(self, _prices: Floats) -> float:
        """What no masks within the budgets exceed, whatever the flows: each task takes its best blocks."""
        blocks = self._adjusted.shape[1]
        return sum(
            float(np.partition(row, blocks - size)[blocks - size :].sum())
            for row, size in zip(self._adjusted, self._problem.budgets, strict=True)
        )

    def stage(self, prices: Floats, temperature: float) -> tuple[Floats, list[Bools]]:
        """Better prices, and masks: each task's best blocks at once, and one task after the other."""
        budgets = self._problem.budgets
        prices, settled = _stage(self._flows, budgets, prices, temperature)
        self._adjusted = self._flows.adjusted - self._jitter
        masks = top_blocks(self._flows.adjusted, budgets), settled
        return prices, [_climb(self._problem, found) for found in masks]


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
        step = newton_step(point, 10 * temperature)
        if -float(point.gradient @ step) <= 0.1 * temperature:
            break
        for _ in range(_HALVINGS):
            flows.sweep(prices + step, 1)
            if _value(flows, budgets, prices + step, temperature) <= point.value:
                break
            step = step / 2
        prices = prices + step
    return prices


def _value(flows: Flows, budgets: Ints, prices: Floats, temperature: float) -> float:
    soft = np.logaddexp(0, (flows.adjusted - prices[:, None]) / temperature)
    return float(prices @ budgets + temperature * soft.sum())


def _smooth(flows: Flows, budgets: Ints, prices: Floats, temperature: float) -> SmoothDual:
    """``sum_t prices[t] budgets[t] + sum_bt temperature * log(1 + exp(balance / temperature))``, and derivatives."""
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
    return SmoothDual(value, budgets - chance.sum(1), (hessian + hessian.T) / 2)


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


def _climb(problem: NestedProblem, masks: Bools) -> Bools:
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

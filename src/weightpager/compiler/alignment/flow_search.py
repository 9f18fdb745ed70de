"""The search for masks: flows between the tasks of a block, prices for their budgets.

`Flows` make the tasks independent of each other, a price per task turns its budget into a cost, and Newton steps find
the prices on a problem that is smoothed by a temperature, while it cools.

A block that t keeps and u does not is charged ``charge[t, u]``. By max-flow min-cut, the best set of tasks for a block
is worth as much as the tasks' positive balances together, where t may hand u up to ``charge[t, u]`` of its balance, and
hands over what makes the sum least. ``docs/alignment.md`` has the derivation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weightpager.compiler.alignment.nested import (
    DECIDED,
    NestedProblem,
    SmoothDual,
    largest,
    newton_step,
    top_blocks,
)
from weightpager.compiler.alignment.problem import Bools, Floats, Ints

_CHUNK = 1 << 16  # numbers at a time, so that they stay in cache


@dataclass(frozen=True, eq=False)
class Round:
    """Pairs of tasks of which no two share a task: they are balanced at once.

    Attributes:
        first, second: [pairs], the tasks.
        least, most: [pairs, 1 or B], bounds of the flow: what first may hand to second, and minus the way back.
        flow: [pairs, B], what first hands to second.
    """

    first: Ints
    second: Ints
    least: Floats
    most: Floats
    flow: Floats


@dataclass(frozen=True, eq=False)
class Flows:
    """What every task has handed to every other, block by block.

    Attributes:
        adjusted: [T, B], the saliency, less what the task handed over, plus what it was handed.
        rounds: all pairs of tasks, once each.
    """

    adjusted: Floats
    rounds: tuple[Round, ...]

    @classmethod
    def none(cls, saliency: Floats, charge: Floats) -> Flows:
        """Nothing handed over yet. ``saliency`` [T, B], ``charge`` [T, T]."""
        blocks = saliency.shape[1]
        rounds = [
            Round(a, b, -charge[b, a][:, None], charge[a, b][:, None], np.zeros((len(a), blocks)))
            for a, b in _tournament(len(saliency))
        ]
        return cls(saliency.copy(), tuple(rounds))

    def sweep(self, prices: Floats, times: int) -> None:
        """Let every pair even out its balances, saliency less price [T], as far as its charges allow.

        For a pair that is the best it can do for any convex sum of balances at once. Swept often enough, all pairs
        together have done the best.
        """
        tasks, blocks = self.adjusted.shape
        step = max(1, _CHUNK // tasks**2)
        for start in range(0, blocks, step):
            some = slice(start, start + step)
            balance = self.adjusted[:, some] - prices[:, None]
            for _ in range(times):
                for pairs in self.rounds:
                    _even_out(balance, pairs, some)
            self.adjusted[:, some] = balance + prices[:, None]

    def undecided(self) -> Flows:
        """A copy in which `decide` may tell the charges on single blocks."""
        shape = self.adjusted.shape[1]
        rounds = (
            Round(r.first, r.second, r.least.repeat(shape, 1), r.most.repeat(shape, 1), r.flow.copy())
            for r in self.rounds
        )
        return Flows(self.adjusted.copy(), tuple(rounds))

    def decide(self, task: int, keep: Bools) -> None:
        """A task's mask [B] is known: from the next sweep on its pairs hand over just what the others are charged."""
        for pairs in self.rounds:
            for row in np.flatnonzero(pairs.first == task):
                pairs.least[row] = pairs.most[row] = np.where(keep, pairs.most[row], pairs.least[row])
            for row in np.flatnonzero(pairs.second == task):
                pairs.least[row] = pairs.most[row] = np.where(keep, pairs.least[row], pairs.most[row])

    def take(self, blocks: Bools) -> Flows:
        """A copy of some blocks."""
        rounds = (Round(r.first, r.second, r.least, r.most, r.flow[:, blocks]) for r in self.rounds)
        return Flows(self.adjusted[:, blocks], tuple(rounds))

    def put(self, blocks: Bools, part: Flows) -> None:
        """Write back what `take` took."""
        self.adjusted[:, blocks] = part.adjusted
        for ours, theirs in zip(self.rounds, part.rounds, strict=True):
            ours.flow[:, blocks] = theirs.flow


def _even_out(balance: Floats, pairs: Round, some: slice) -> None:
    flow = pairs.flow[:, some]
    first, second = balance[pairs.first], balance[pairs.second]
    part = some if pairs.most.shape[1] > 1 else slice(None)
    wanted = np.clip(flow + (first - second) / 2, pairs.least[:, part], pairs.most[:, part])
    more = wanted - flow
    flow[:] = wanted
    balance[pairs.first] = first - more
    balance[pairs.second] = second + more


def _tournament(tasks: int) -> list[tuple[Ints, Ints]]:
    """Every pair once, in rounds in which everybody plays at most once: one stays in place, the others move on."""
    ring = list(range(tasks + tasks % 2))
    rounds = []
    for _ in range(len(ring) - 1):
        halves = zip(ring[: len(ring) // 2], reversed(ring[len(ring) // 2 :]), strict=True)
        pairs = np.array([sorted(pair) for pair in halves if max(pair) < tasks], np.int64).reshape(-1, 2)
        rounds.append((pairs[:, 0], pairs[:, 1]))
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds


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

    def bound(self) -> float:
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

"""Flows: how the tasks share the cost of a block, so that afterwards each task can judge the block on its own.

A block that t keeps and u does not is charged ``charge[t, u]``. By max-flow min-cut, the best set of tasks for a block
is worth as much as the tasks' positive balances together, where t may hand u up to ``charge[t, u]`` of its balance,
and hands over what makes the sum least. `docs/alignment.md` has the derivation. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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

"""The next task by the latest few: Markov models of several orders and memories, mixed by how well they do."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.runtime.prediction.context_counts import ContextCounts
from weightpager.runtime.prediction.learner import Learner

Floats = npt.NDArray[np.float64]

ORDER = 3
MEMORIES = (200.0, 10.0)
SHARE = 0.01


class MarkovPredictor(Learner):
    """A mixture of experts: what is assumed at first, and every order from 0 to ``order`` with every memory.

    An order blends what followed its context with the next lower order (see ``ContextCounts``). An expert's weight is
    multiplied by the probability that it gave to what came, and then a small share is dealt out to all alike: the
    fixed share of Herbster and Warmuth, "Tracking the best expert" (1998). The loss stays close to that of the best
    sequence of experts; short memories take over when habits change, long ones when they last.

    Args:
        tasks: how many there are.
        prior: see ``Learner``.
        order: tasks, the current one included, that the longest context has.
        memories: see ``ContextCounts``.
        capacity: contexts kept of each order and memory.
    """

    def __init__(
        self,
        tasks: int,
        prior: npt.ArrayLike | None = None,
        order: int = ORDER,
        memories: tuple[float, ...] = MEMORIES,
        capacity: int = 1024,
    ) -> None:
        super().__init__(tasks, prior)
        if order < 0 or not memories or min(memories) <= 1:
            raise ValueError(f"expected an order from 0 up and memories over 1, got {order} and {memories}")
        self._reach = max(1, order)
        self._counts = [[ContextCounts(memory, capacity) for _ in range(order + 1)] for memory in memories]
        self._weights = np.full(1 + len(memories) * (order + 1), 1.0)
        self._weights /= self._weights.sum()

    def _learn(self, past: tuple[int, ...], task: int) -> None:
        said = np.array(self._expert_chances(past, task))
        weights = self._weights * said
        # All may have given it nothing: a prior can rule out what comes all the same.
        if (total := weights.sum()) > 0:
            self._weights = (1 - SHARE) * weights / total + SHARE / len(weights)
        for orders in self._counts:
            for order, counts in enumerate(orders):
                if order <= len(past):
                    counts.add(past[:order], task)

    def _expert_chances(self, past: tuple[int, ...], task: int) -> list[float]:
        """The probability that each expert gives to a task."""
        base = float(self._base(past[0])[task])
        said = [base]
        for orders in self._counts:
            chance = base
            for order, counts in enumerate(orders):
                if order == 1 and self._prior is not None:
                    chance = base
                chance = counts.chance(past[:order], task, chance, past[0]) if order <= len(past) else chance
                said.append(chance)
        return said

    def _chances(self, past: tuple[int, ...]) -> Floats:
        current = past[0] if past else None
        base = self._base(current)
        mixed = self._weights[0] * base
        weights = iter(self._weights[1:])
        for orders in self._counts:
            chances = base
            for order, counts in enumerate(orders):
                if order == 1 and self._prior is not None and past:
                    chances = base
                chances = counts.chances(past[:order], chances, current) if order <= len(past) else chances
                mixed = mixed + next(weights) * chances
        return mixed if mixed.any() else base

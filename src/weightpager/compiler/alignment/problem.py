"""What an alignment decides on, and what it decided. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.blocks import MAX_TASKS
from weightpager.errors import CompileError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FLOOR = 0.02
"""The share of a weight's blocks that every task keeps. A layer that a task lost altogether passes nothing on, which
saliency, measured on the dense model, doesn't foresee."""


@dataclass(frozen=True, eq=False)
class AlignmentProblem:
    """Which set S_b of tasks keeps block b, such that task t keeps ``budgets[t]`` blocks.

    The best sets maximise the saliency kept less the blocks that switches load, with the meaning of ``[...]`` as 1 if
    true, else 0::

        sum_b [ sum_{t in S_b} saliency[b, t] - strength * sum_{t, u} switch_rate[t, u] [u in S_b and t not in S_b] ]

    Attributes:
        saliency: [B, T], not negative, comparable between tasks; the weights' blocks one after the other.
        budgets: [T], how many blocks each task keeps.
        switch_rate: [T, T], how often a switch leads from t to u; the diagonal is ignored.
        strength: the price of loading one block, in units of saliency. ``inf`` loads the least that the budgets
            allow (equal budgets share one mask, others are nested), and among such masks keeps the most saliency;
            objective and bound then count saliency alone.
        versions: [B, T], equal numbers share values. A block is present at a switch only if the task before has it in
            the same version; None if all tasks have the same values. With an infinite strength all tasks get the same
            blocks, each in its own version.
        sizes: blocks of each weight, of which every task keeps its `floors`; empty for no floors.
        evenness: how high these floors are, as for `floors`.
    """

    saliency: npt.NDArray[np.floating]
    budgets: npt.NDArray[np.integer]
    switch_rate: Floats
    strength: float
    versions: npt.NDArray[np.integer] | None = None
    sizes: tuple[int, ...] = ()
    evenness: float = 0.0

    @property
    def floors(self) -> Ints:
        """The fewest blocks that each task keeps of each paged weight, [weights, tasks]."""
        return floors(self.sizes, self.budgets, self.evenness)

    @property
    def rate(self) -> Floats:
        """The switch rate with a diagonal of zeros."""
        return np.where(np.eye(len(self.switch_rate), dtype=np.bool_), 0.0, self.switch_rate)

    def check(self) -> None:
        """See that there is an answer.

        Raises:
            ValueError: the shapes do not fit together, or a rate or the strength is negative or not a number.
            CompileError: there are too many tasks, a saliency is negative or not finite, or a budget is out of range.
        """
        saliency, budgets, rate = self.saliency, self.budgets, self.switch_rate
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
        if not self.strength >= 0:
            raise ValueError(f"strength: expected a number from 0 up, got {self.strength}")
        if tasks > MAX_TASKS:
            raise CompileError(f"expected at most {MAX_TASKS} tasks to align, got {tasks}")
        self._check_values()

    def _check_values(self) -> None:
        for block, task in np.argwhere(~(np.isfinite(self.saliency) & (self.saliency >= 0))):
            found = self.saliency[block, task]
            raise CompileError(
                f"saliency of block {block}, task {task}: expected a finite number from 0 up, got {found}"
            )
        blocks = len(self.saliency)
        for task in np.flatnonzero((self.budgets < 0) | (self.budgets > blocks)):
            raise CompileError(f"budget of task {task}: expected 0 to {blocks} blocks, got {self.budgets[task]}")


@dataclass(frozen=True, eq=False)
class Alignment:
    """What was decided.

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
        return gap_of([self])


def gap_of(alignments: Sequence[Alignment]) -> float:
    """The most that other masks of some problems could gain in all, as a share of the bounds."""
    bound, objective = (sum(getattr(each, name) for each in alignments) for name in ("bound", "objective"))
    return float(max(0.0, bound - objective) / max(abs(bound), float(np.finfo(np.float64).tiny)))


def floors(sizes: Sequence[int], budgets: npt.NDArray[np.integer], evenness: float = 0.0) -> Ints:
    """The fewest blocks that each task keeps of each paged weight, [weights, tasks].

    `FLOOR` of the weight, at least one block; half of what the budget would leave a weight where that is less, so that
    a floor never decides most of a mask.

    Args:
        sizes: blocks of each weight.
        budgets: blocks that each task keeps, [tasks].
        evenness: what a floor is at least, as a share of what the budget would leave the weight; at most 0.5.
    """
    blocks = np.array(sizes)
    wanted = np.maximum(1, np.round(FLOOR * blocks))[:, None]  # [weights, 1]
    even = blocks[:, None] * budgets / blocks.sum()  # [weights, tasks]
    least = np.where(wanted <= even / 2, wanted, np.floor(even / 2))
    return np.asarray(np.maximum(least, np.floor(evenness * even)), np.int64)


def expected_switch_blocks(keep: Bools, switch_rate: Floats) -> float:
    """Blocks that an average switch loads. ``keep`` [B, T], ``switch_rate`` [T, T]."""
    mask = keep.astype(np.float64)
    return float(np.sum(switch_rate * ((1 - mask).T @ mask)))

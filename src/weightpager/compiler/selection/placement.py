"""Which blocks a new task keeps, the other tasks' masks being fixed.

With all other masks fixed, the objective of `structure_aligner.align` is a sum over the new task's blocks: its
saliency, less what loading the block costs in switches to the task from tasks that don't keep it, plus what having it
saves in switches to tasks that do. The blocks of the highest sums are the best choice, exactly; under floors, those of
each weight that meet its floor, and then the highest of the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weightpager.compiler.alignment.floors import floors

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_ROUNDS = 8
"""Several new tasks choose in turn, until none would choose otherwise; each round gains, and few are needed."""


def place(
    saliency: Floats,
    fixed: Bools,
    budgets: npt.NDArray[np.int64],
    switch_rate: Floats,
    strength: float,
    sizes: Sequence[int],
    evenness: float = 0.0,
) -> Bools:
    """Choose the blocks of new tasks.

    Args:
        saliency: [B, N], not negative, comparable between tasks; the weights' blocks one after the other.
        fixed: [B, F], masks that stay: True where a task has the very values that a new one would take.
        budgets: [N], blocks that each new task keeps.
        switch_rate: [F + N, F + N], how often a switch leads from one task to another; the fixed ones come first.
        strength: the price of loading one block, in units of saliency; ``inf`` counts saliency only between blocks
            whose loading costs the same.
        sizes: blocks of each weight.
        evenness: as for `floors`.

    Returns:
        [B, N] masks; exactly ``budgets[n]`` blocks for new task n, and at least `floors` of each weight.
    """
    first, least = fixed.shape[1], floors(sizes, budgets, evenness)
    keep = np.concatenate([fixed, np.zeros(saliency.shape, bool)], axis=1)
    for _ in range(_ROUNDS):
        before = keep.copy()
        for new in range(saliency.shape[1]):
            toll = _toll(keep, switch_rate, first + new)
            order = _order(saliency[:, new], toll, strength)
            keep[:, first + new] = _first(order, int(budgets[new]), sizes, least[:, new])
        if (keep == before).all():
            break
    return keep[:, first:]


def _toll(keep: Bools, switch_rate: Floats, task: int) -> Floats:
    """[B], what switches load more of each block if the task keeps it than if it doesn't."""
    others = np.arange(keep.shape[1]) != task
    to_it, from_it = switch_rate[others, task], switch_rate[task, others]
    return np.asarray((~keep[:, others]) @ to_it - keep[:, others] @ from_it)


def _order(saliency: Floats, toll: Floats, strength: float) -> npt.NDArray[np.intp]:
    """The blocks, the best first."""
    if np.isinf(strength):
        # Sums of the same rates in another order differ in the last bits, which must not decide.
        return np.lexsort((-saliency, toll.round(12)))
    return np.argsort(-(saliency - strength * toll), kind="stable")


def _first(order: npt.NDArray[np.intp], budget: int, sizes: Sequence[int], least: npt.NDArray[np.int64]) -> Bools:
    """The first ``budget`` blocks, after the first ``least`` of each weight."""
    weight = np.repeat(np.arange(len(sizes)), sizes)[order]
    chosen = np.zeros(len(order), bool)
    for number, fewest in enumerate(least):
        chosen[order[weight == number][:fewest]] = True
    others = order[~chosen[order]]
    chosen[others[: budget - np.count_nonzero(chosen)]] = True
    return chosen

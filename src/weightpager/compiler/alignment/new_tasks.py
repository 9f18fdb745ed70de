"""Which blocks a new task keeps, the other tasks' masks being fixed.

With all other masks fixed, the objective of `structure_aligner.align` is a sum over the new task's blocks: its
saliency, less what loading the block costs in switches to the task from tasks that don't keep it, plus what having it
saves in switches to tasks that do. The blocks of the highest sums are the best choice, exactly; under floors, those of
each weight that meet its floor, and then the highest of the others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.compiler.alignment.problem import AlignmentProblem, Bools, Floats, Ints

_ROUNDS = 8
"""Several new tasks choose in turn, until none would choose otherwise; each round gains, and few are needed."""


def align_new_tasks(problem: AlignmentProblem, fixed: Bools) -> Bools:
    """Choose the blocks of new tasks.

    Args:
        problem: of the N new tasks, but for its switch rate, [F + N, F + N], which begins with the F fixed ones. With
            an infinite strength saliency counts only between blocks whose loading costs the same.
        fixed: [B, F], masks that stay: True where a task has the very values that a new one would take.

    Returns:
        [B, N] masks; exactly ``budgets[n]`` blocks for new task n, and at least the floors of each weight.
    """
    first, least, saliency = fixed.shape[1], problem.floors, problem.saliency
    keep = np.concatenate([fixed, np.zeros(saliency.shape, bool)], axis=1)
    for _ in range(_ROUNDS):
        before = keep.copy()
        for new, own in enumerate(saliency.T):
            toll = _toll(keep, problem.switch_rate, first + new)
            order = _order(own, toll, problem.strength)
            keep[:, first + new] = _first(order, int(problem.budgets[new]), problem.sizes, least[:, new])
        if (keep == before).all():
            break
    return keep[:, first:]


def _toll(keep: Bools, switch_rate: Floats, task: int) -> Floats:
    """[B], what switches load more of each block if the task keeps it than if it doesn't."""
    others = np.arange(keep.shape[1]) != task
    to_it, from_it = switch_rate[others, task], switch_rate[task, others]
    return np.asarray((~keep[:, others]) @ to_it - keep[:, others] @ from_it)


def _order(saliency: npt.NDArray[np.floating], toll: Floats, strength: float) -> npt.NDArray[np.intp]:
    """The blocks, the best first."""
    if np.isinf(strength):
        # Sums of the same rates in another order differ in the last bits, which must not decide.
        return np.lexsort((-saliency, toll.round(12)))
    return np.argsort(-(saliency - strength * toll), kind="stable")


def _first(order: npt.NDArray[np.intp], budget: int, sizes: tuple[int, ...], least: Ints) -> Bools:
    """The first ``budget`` blocks, after the first ``least`` of each weight."""
    weight = np.repeat(np.arange(len(sizes)), sizes)[order]
    chosen = np.zeros(len(order), bool)
    for number, fewest in enumerate(least):
        chosen[order[weight == number][:fewest]] = True
    others = order[~chosen[order]]
    chosen[others[: budget - np.count_nonzero(chosen)]] = True
    return chosen

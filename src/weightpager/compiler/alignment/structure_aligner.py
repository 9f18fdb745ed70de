"""Which tasks keep which block: the saliency kept, less the bytes that switches load, under a budget for each task.

``docs/alignment.md`` derives what is computed here. In short: a price per task turns the budgets into costs and makes
the blocks independent of each other; flows between the tasks of a block make the tasks independent of each other; both
together bound what any masks can reach, and lead to masks that nearly do. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.blocks import MAX_TASKS
from weightpager.compiler.alignment import flow_search, subset_search
from weightpager.compiler.alignment.problem import Bools, Floats, Problem, net
from weightpager.errors import CompileError


@dataclass(frozen=True, eq=False)
class Alignment:
    """What `align` decided.

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
        return max(0.0, self.bound - self.objective) / max(abs(self.bound), float(np.finfo(np.float64).tiny))


def align(
    saliency: npt.NDArray[np.floating], budgets: npt.NDArray[np.integer], switch_rate: Floats, strength: float
) -> Alignment:
    """Choose for every block b the set S_b of tasks that keep it, such that task t keeps ``budgets[t]`` blocks.

    Maximises the saliency kept less the blocks that switches load, with the meaning of ``[...]`` as 1 if true, else 0::

        sum_b [ sum_{t in S_b} saliency[b, t] - strength * sum_{t, u} switch_rate[t, u] [u in S_b and t not in S_b] ]

    The same input gives the same output, and reordering the tasks reorders the masks.

    Args:
        saliency: [B, T], not negative, comparable between tasks.
        budgets: [T], how many blocks each task keeps.
        switch_rate: [T, T], how often a switch leads from t to u; the diagonal is ignored.
        strength: the price of loading one block, in units of saliency. ``inf`` loads the least that the budgets
            allow (equal budgets share one mask, others are nested), and among such masks keeps the most saliency;
            objective and bound then count saliency alone.

    Raises:
        ValueError: the shapes do not fit together, or a rate or the strength is negative or not a number.
        CompileError: there are too many tasks, a saliency is negative or not finite, or a budget is out of range.
    """
    _validate(saliency, budgets, switch_rate, strength)
    by_task = np.ascontiguousarray(saliency.T, np.float64)  # [T, B]
    order = _canonical_order(by_task, budgets, switch_rate)
    ordered, sizes = by_task[order], budgets[order].astype(np.int64)
    rate = np.where(np.eye(len(order), dtype=np.bool_), 0.0, switch_rate[np.ix_(order, order)])
    problem = Problem.stated(ordered, sizes, rate + rate.T, strength)
    kept, dual = _solve(problem)
    toll = problem.charge if np.isinf(strength) else strength * rate.T
    unavoidable = np.sum(toll * np.maximum(np.subtract.outer(sizes, sizes), 0))
    objective = net(ordered, kept, toll)
    keep = np.empty(saliency.shape, np.bool_)
    keep[:, order] = kept.T
    return Alignment(keep, objective, bound=dual - float(unavoidable))


def overlap(keep: Bools, weights: npt.ArrayLike | None = None) -> Floats:
    """What a switch need not load: ``[A, B]`` is (kept by A and by B) / (kept by B), and 1 where B keeps nothing.

    Args:
        keep: [blocks, T] masks.
        weights: [blocks], the bytes of each block; None counts blocks.
    """
    size = np.ones(len(keep)) if weights is None else np.asarray(weights, np.float64)
    if size.shape != keep.shape[:1]:
        raise ValueError(f"weights: expected one for each of {len(keep)} blocks, got shape {size.shape}")
    shared: Floats = np.where(keep, size[:, None], 0.0).T @ keep  # [A, B]
    own = shared.diagonal()
    return np.divide(shared, own, out=np.ones_like(shared), where=own > 0)


# ---- The search ----


def _canonical_order(saliency: Floats, budgets: npt.NDArray[np.integer], rate: Floats) -> npt.NDArray[np.intp]:
    """Tasks by budget, ties by what does not depend on the order in which they came."""
    leaving, arriving = (np.sort(side, axis=1).sum(axis=1) for side in (rate, rate.T))
    return np.lexsort((arriving, leaving, saliency.sum(axis=1), budgets))


def _solve(problem: Problem) -> tuple[Bools, float]:
    """Masks [T, B] and bound. Tasks that keep all blocks or none have no choice, and no pair with them is charged."""
    blocks = problem.saliency.shape[1]
    masks = np.repeat((problem.budgets == blocks)[:, None], blocks, axis=1)
    bound = float(problem.saliency[masks].sum())
    free = (problem.budgets > 0) & (problem.budgets < blocks)
    if free.any():
        search = subset_search if free.sum() <= subset_search.MOST_TASKS else flow_search
        masks[free], of_free = search.solve(problem.part(free))
        bound += of_free
    return masks, bound


# ---- The border ----


def _validate(
    saliency: npt.NDArray[np.floating], budgets: npt.NDArray[np.integer], rate: Floats, strength: float
) -> None:
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
    if not strength >= 0:
        raise ValueError(f"strength: expected a number from 0 up, got {strength}")
    if tasks > MAX_TASKS:
        raise CompileError(f"expected at most {MAX_TASKS} tasks to align, got {tasks}")
    _validate_values(saliency, budgets)


def _validate_values(saliency: npt.NDArray[np.floating], budgets: npt.NDArray[np.integer]) -> None:
    blocks = len(saliency)
    wrong = np.argwhere(~(np.isfinite(saliency) & (saliency >= 0)))
    if len(wrong):
        block, task = wrong[0]
        found = saliency[block, task]
        raise CompileError(f"saliency of block {block}, task {task}: expected a finite number from 0 up, got {found}")
    for task in np.flatnonzero((budgets < 0) | (budgets > blocks)):
        raise CompileError(f"budget of task {task}: expected 0 to {blocks} blocks, got {budgets[task]}")

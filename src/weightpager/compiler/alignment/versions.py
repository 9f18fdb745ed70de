"""Alignment where tasks have values of their own for some blocks: only tasks with the same version share a load.

Every version of every block is an item for the aligner. A task may keep the items of its own versions only; to it the
others have no saliency. That alone wouldn't keep the aligner from giving it one, to spare another task's switch. So
every permitted item is worth a bonus on top. A task keeps as many items as its budget says: the bonus adds the same to
all permitted masks, and it is larger than what any switch could save by swapping a permitted item for another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from weightpager.compiler.alignment.problem import (
    Alignment,
    AlignmentProblem,
    Bools,
    Floats,
    Ints,
    expected_switch_blocks,
)
from weightpager.compiler.alignment.searches import align_shared


@dataclass(frozen=True)
class _Items:
    """Versions of blocks, as rows of the alignment.

    Attributes:
        blocks: [items], the block that the item is a version of.
        permitted: [items, T], whether it is the task's own version.
    """

    blocks: Ints
    permitted: Bools

    @classmethod
    def of(cls, versions: npt.NDArray[np.integer]) -> _Items:
        by_version = [versions == version for version in np.unique(versions)]  # [B, T] each
        there = [np.flatnonzero(of_version.any(1)) for of_version in by_version]
        permitted = [of_version[blocks] for of_version, blocks in zip(by_version, there, strict=True)]
        return cls(np.concatenate(there), np.concatenate(permitted))


def align_versions(problem: AlignmentProblem) -> Alignment:
    """The best masks, without floors."""
    versions, saliency = problem.versions, problem.saliency
    if versions is None or np.isinf(problem.strength) or (versions == versions[:, :1]).all():
        return align_shared(problem)
    items = _Items.of(versions)
    # More than a task's swap of one item for another can save in loads.
    bonus = 2.0 * problem.strength * float((problem.rate.sum(0) + problem.rate.sum(1)).max()) + float(saliency.mean())
    worth = np.where(items.permitted, saliency[items.blocks], 0.0)  # [items, T]
    alignment = align_shared(replace(problem, saliency=np.where(items.permitted, worth + bonus, 0.0)))
    kept = _repaired(alignment.keep, worth, items.permitted)
    keep = np.zeros(saliency.shape, np.bool_)
    np.logical_or.at(keep, items.blocks, kept & items.permitted)
    objective = float(worth[kept].sum()) - problem.strength * expected_switch_blocks(kept, problem.switch_rate)
    return Alignment(keep, objective, alignment.bound - bonus * float(problem.budgets.sum()))


def _repaired(keep: Bools, worth: Floats, permitted: Bools) -> Bools:
    """The same masks without items that aren't permitted: the best masks have none, but the search is not exact."""
    kept = keep & permitted
    for task in np.flatnonzero((keep & ~permitted).any(0)):
        free = np.flatnonzero(permitted[:, task] & ~kept[:, task])
        missing = int(keep[:, task].sum() - kept[:, task].sum())
        kept[free[np.argsort(-worth[free, task], kind="stable")[:missing]], task] = True
    return kept

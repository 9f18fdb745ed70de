"""Alignment where tasks have values of their own for some blocks: only tasks with the same version share a load.

Every version of every block is an item for the aligner. A task may keep the items of its own versions only; to it the
others have no saliency. That alone wouldn't keep the aligner from giving it one, to spare another task's switch. So
every permitted item is worth a bonus on top. A task keeps as many items as its budget says: the bonus adds the same to
all permitted masks, and it is larger than what any switch could save by swapping a permitted item for another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.compiler.alignment.problem import Bools, Floats, Ints
from weightpager.compiler.alignment.structure_aligner import Alignment, align
from weightpager.compiler.model.own_weights import Versions


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
    def of(cls, versions: Versions) -> _Items:
        found = [versions == version for version in np.unique(versions)]  # [B, T] each
        there = [np.flatnonzero(of_version.any(1)) for of_version in found]
        permitted = [of_version[blocks] for of_version, blocks in zip(found, there, strict=True)]
        return cls(np.concatenate(there), np.concatenate(permitted))


def align_versions(
    saliency: npt.NDArray[np.floating],
    versions: Versions,
    budgets: npt.NDArray[np.integer],
    switch_rate: Floats,
    strength: float,
) -> Alignment:
    """`align`, but a block counts as present at a switch only if the task before has it in the same version.

    With an infinite strength all tasks get the same blocks, each in its own version.

    Args:
        saliency: [B, T], as in `align`, each task's measured on its own values.
        versions: [B, T], equal numbers share values.
        budgets: [T].
        switch_rate: [T, T].
        strength: the price of loading one block.

    Raises:
        ValueError, CompileError: as `align`.
    """
    if np.isinf(strength) or (versions == versions[:, :1]).all():
        return align(saliency, budgets, switch_rate, strength)
    items = _Items.of(versions)
    bonus = _bonus(switch_rate, strength) + float(saliency.mean())
    worth = np.where(items.permitted, saliency[items.blocks], 0.0)  # [items, T]
    found = align(np.where(items.permitted, worth + bonus, 0.0), budgets, switch_rate, strength)
    kept = _repaired(found.keep, worth, items.permitted)
    keep = np.zeros(saliency.shape, np.bool_)
    np.logical_or.at(keep, items.blocks, kept & items.permitted)
    objective = _objective(worth, kept, switch_rate, strength)
    return Alignment(keep, objective, found.bound - bonus * float(budgets.sum()))


def _bonus(switch_rate: Floats, strength: float) -> float:
    """More than a task's swap of one item for another can save in loads."""
    rate = np.where(np.eye(len(switch_rate), dtype=np.bool_), 0.0, switch_rate)
    return 2.0 * strength * float((rate.sum(0) + rate.sum(1)).max())


def _repaired(keep: Bools, worth: Floats, permitted: Bools) -> Bools:
    """The same masks without items that aren't permitted: the best masks have none, but the search is not exact."""
    kept = keep & permitted
    for task in np.flatnonzero((keep & ~permitted).any(0)):
        free = np.flatnonzero(permitted[:, task] & ~kept[:, task])
        missing = int(keep[:, task].sum() - kept[:, task].sum())
        kept[free[np.argsort(-worth[free, task], kind="stable")[:missing]], task] = True
    return kept


def _objective(worth: Floats, keep: Bools, switch_rate: Floats, strength: float) -> float:
    mask = keep.astype(np.float64)  # [items, T]
    loaded = (1 - mask).T @ mask  # [t, u]: kept by u and not by t
    return float(worth[keep].sum() - strength * np.sum(switch_rate * loaded))

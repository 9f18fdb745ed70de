"""Floors: every task keeps a little of every paged weight, whatever one budget over all of them would choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from weightpager.compiler.alignment.problem import Bools, Floats, Ints
from weightpager.compiler.alignment.structure_aligner import Alignment, align
from weightpager.compiler.alignment.versions import align_versions
from weightpager.compiler.model.own_weights import Versions

SHARE = 0.02
"""Of a weight's blocks. A layer that a task lost altogether passes nothing on, which saliency, measured on the dense
model, doesn't foresee."""

_ROUNDS = 8


def floors(sizes: Sequence[int], budgets: Ints, evenness: float = 0.0) -> Ints:
    """The fewest blocks that each task keeps of each paged weight, [weights, tasks].

    `SHARE` of the weight, at least one block; half of what the budget would leave a weight where that is less, so that
    a floor never decides most of a mask.

    Args:
        sizes: blocks of each weight.
        budgets: blocks that each task keeps, [tasks].
        evenness: what a floor is at least, as a share of what the budget would leave the weight; at most 0.5.
    """
    blocks = np.array(sizes)
    wanted = np.maximum(1, np.round(SHARE * blocks))[:, None]  # [weights, 1]
    even = blocks[:, None] * budgets / blocks.sum()  # [weights, tasks]
    least = np.where(wanted <= even / 2, wanted, np.floor(even / 2))
    return np.asarray(np.maximum(least, np.floor(evenness * even)), np.int64)


def align_above_floors(
    saliency: Floats,
    versions: Versions,
    budgets: Ints,
    switch_rate: Floats,
    strength: float,
    sizes: Sequence[int],
    evenness: float = 0.0,
) -> Alignment:
    """`align_versions`, such that each task keeps at least `floors` of each weight.

    Where masks fall short, the weight is aligned by itself with the floors as budgets; the blocks that this chooses are
    then made too dear to drop. Objective and bound are those of masks that keep these blocks: what floors cost is not
    in the gap.

    Args:
        saliency: [B, T], the weights' blocks one after the other.
        versions: [B, T], equal numbers share values.
        budgets: as for `align`.
        switch_rate: as for `align`.
        strength: as for `align`.
        sizes: blocks of each weight.
        evenness: as for `floors`.
    """
    least = floors(sizes, budgets, evenness)
    found = align_versions(saliency, versions, budgets, switch_rate, strength)
    bound, pinned = found.bound, np.zeros(saliency.shape, np.bool_)
    price = 4 * (float(saliency.max()) + (strength if np.isfinite(strength) else 0.0))
    for _ in range(_ROUNDS):  # what one weight gains another may lose
        short = _kept(found.keep, sizes) < least  # [weights, tasks]
        if not short.any():
            break
        pinned |= _pins(saliency, switch_rate, strength, sizes, np.where(short, least, 0))
        dearer = align_versions(saliency + price * pinned, versions, budgets, switch_rate, strength)
        paid = price * np.array([(dearer.keep & pinned).sum(), pinned.sum()])
        found = replace(dearer, objective=dearer.objective - paid[0], bound=min(bound, dearer.bound - paid[1]))
    return found


def _kept(keep: Bools, sizes: Sequence[int]) -> Ints:
    """Blocks that each task keeps of each weight, [weights, tasks]."""
    starts = np.cumsum([0, *sizes[:-1]])
    return np.asarray(np.add.reduceat(keep.astype(np.int64), starts, axis=0))


def _pins(saliency: Floats, switch_rate: Floats, strength: float, sizes: Sequence[int], least: Ints) -> Bools:
    """The blocks with which the short tasks meet their floors, were each weight the whole model."""
    pins = np.zeros(saliency.shape, np.bool_)
    start = 0
    for size, wanted in zip(sizes, least, strict=True):
        short = np.flatnonzero(wanted)
        if len(short):
            here = saliency[start : start + size, short]
            pins[start : start + size, short] = align(
                here, wanted[short], switch_rate[np.ix_(short, short)], strength
            ).keep
        start += size
    return pins

"""Which tasks keep which block: the saliency kept, less the bytes that switches load, under budgets and floors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from weightpager.compiler.alignment.problem import Alignment, AlignmentProblem, Bools, Ints
from weightpager.compiler.alignment.searches import align_shared
from weightpager.compiler.alignment.versions import align_versions

_ROUNDS = 8


def align(problem: AlignmentProblem) -> Alignment:
    """Choose the blocks that each task keeps.

    The same problem gives the same answer, and reordering the tasks reorders the masks.

    Where masks fall short of the floors, the weight is aligned by itself with the floors as budgets; the blocks that
    this chooses are then made too dear to drop. The bound holds for masks that keep these blocks. So the gap doesn't
    count what the floors cost.

    Raises:
        ValueError, CompileError: as `AlignmentProblem.check`.
    """
    problem.check()
    alignment = align_versions(problem)
    if not problem.sizes:
        return alignment
    saliency, strength, least = problem.saliency, problem.strength, problem.floors
    bound, pinned = alignment.bound, np.zeros(saliency.shape, np.bool_)
    price = 4 * (float(saliency.max()) + (strength if np.isfinite(strength) else 0.0))
    for number in range(_ROUNDS):  # what one weight gains another may lose
        short = _kept(alignment.keep, problem.sizes) < least  # [weights, tasks]
        if not short.any():
            break
        # The last round pins all floors at once. Together they take at most half of a budget, so every floor is met.
        last = number == _ROUNDS - 1
        pinned = _pins(problem, least) if last else pinned | _pins(problem, np.where(short, least, 0))
        dearer = align_versions(replace(problem, saliency=saliency + price * pinned))
        paid = price * np.array([(dearer.keep & pinned).sum(), pinned.sum()])
        alignment = replace(dearer, objective=dearer.objective - paid[0], bound=min(bound, dearer.bound - paid[1]))
    return alignment


def _kept(keep: Bools, sizes: tuple[int, ...]) -> Ints:
    """Blocks that each task keeps of each weight, [weights, tasks]."""
    starts = np.cumsum([0, *sizes[:-1]])
    return np.asarray(np.add.reduceat(keep.astype(np.int64), starts, axis=0))


def _pins(problem: AlignmentProblem, least: Ints) -> Bools:
    """The blocks with which the short tasks meet their floors, were each weight the whole model."""
    pins = np.zeros(problem.saliency.shape, np.bool_)
    start = 0
    for size, wanted in zip(problem.sizes, least, strict=True):
        short = np.flatnonzero(wanted)
        if len(short):
            here = problem.saliency[start : start + size, short]
            rate = problem.switch_rate[np.ix_(short, short)]
            alone = AlignmentProblem(here, wanted[short], rate, problem.strength)
            pins[start : start + size, short] = align_shared(alone).keep
        start += size
    return pins

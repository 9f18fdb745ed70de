"""Which tasks keep which block: the saliency kept, less the bytes that switches load, under budgets and floors.

``docs/alignment.md`` derives what is computed here. In short: a price per task turns the budgets into costs and makes
the blocks independent of each other; flows between the tasks of a block make the tasks independent of each other; both
together bound what any masks can reach, and lead to masks that nearly do. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from weightpager.compiler.alignment.flow_search import FlowSearch
from weightpager.compiler.alignment.nested import NestedProblem, net, top_blocks
from weightpager.compiler.alignment.problem import (
    Alignment,
    AlignmentProblem,
    Bools,
    Floats,
    Ints,
    expected_switch_blocks,
)

_TOLERANCE = 1e-5
"""A search ends at this gap: a hundredth of the 0.1 % that a compile aims at."""

_COOLING, _STAGES = 0.25, 14


def align_shared(problem: AlignmentProblem) -> Alignment:
    """The best masks where all tasks share the values of all blocks, without floors."""
    saliency = np.ascontiguousarray(problem.saliency.T, np.float64)  # [T, B]
    order = _canonical_order(saliency, problem)
    saliency, budgets = saliency[order], problem.budgets[order].astype(np.int64)
    rate = problem.rate[np.ix_(order, order)]
    nested = NestedProblem.stated(saliency, budgets, rate + rate.T, problem.strength)
    masks, dual = _with_fixed_masks(nested)
    toll = nested.charge if np.isinf(problem.strength) else problem.strength * rate.T
    unavoidable = np.sum(toll * np.maximum(np.subtract.outer(budgets, budgets), 0))
    keep = np.empty(problem.saliency.shape, np.bool_)
    keep[:, order] = masks.T
    return Alignment(keep, net(saliency, masks, toll), dual - float(unavoidable))


def _canonical_order(saliency: npt.NDArray[np.float64], problem: AlignmentProblem) -> npt.NDArray[np.intp]:
    """Tasks by budget, ties by what does not depend on the order in which they came."""
    rates = problem.switch_rate
    leaving, arriving = (np.sort(side, axis=1).sum(axis=1) for side in (rates, rates.T))
    return np.lexsort((arriving, leaving, saliency.sum(axis=1), problem.budgets))


def _with_fixed_masks(problem: NestedProblem) -> tuple[Bools, float]:
    """Masks [T, B] and bound. Tasks that keep all blocks or none have no choice, and no pair with them is charged."""
    blocks = problem.saliency.shape[1]
    masks = np.repeat((problem.budgets == blocks)[:, None], blocks, axis=1)
    bound = float(problem.saliency[masks].sum())
    free = (problem.budgets > 0) & (problem.budgets < blocks)
    if free.any():
        masks[free], of_free = _searched(problem.part(free))
        bound += of_free
    return masks, bound


def _searched(problem: NestedProblem) -> tuple[Bools, float]:
    """The best masks [T, B] that a search finds while it cools, and an upper bound on all masks within the budgets."""
    search, prices = FlowSearch(problem), problem.separate_prices()
    best = top_blocks(problem.saliency, problem.budgets)  # what each task would keep on its own
    value, bound = problem.net(best), search.bound()
    temperature = float(max(prices.mean(), problem.saliency.mean())) or 1.0
    for _ in range(_STAGES):
        if bound - value <= _TOLERANCE * abs(bound):
            break
        prices, candidates = search.stage(prices, temperature)
        bound = min(bound, search.bound())
        for masks in candidates:
            reached = problem.net(masks)
            if reached > value:
                best, value = masks, reached
        temperature *= _COOLING
    return best, bound


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
    """The best masks, without floors, where tasks have values of their own for some blocks.

    Only tasks with the same version of a block share its load. So every version of every block is an item for the
    aligner. A task may keep the items of its own versions only; to it the others have no saliency. That alone wouldn't
    keep the aligner from giving it one, to spare another task's switch. So every permitted item is worth a bonus on
    top. A task keeps as many items as its budget says: the bonus adds the same to all permitted masks, and it is larger
    than what any switch could save by swapping a permitted item for another.
    """
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


def align_new_tasks(problem: AlignmentProblem, fixed: Bools) -> Bools:
    """Choose the blocks of new tasks.

    With all other masks fixed, the objective of `align` is a sum over a new task's blocks: its saliency, less what
    loading the block costs in switches to the task from tasks that don't keep it, plus what having it saves in switches
    to tasks that do. The blocks of the highest sums are the best choice, exactly; under floors, those of each weight
    that meet its floor, and then the highest of the others.

    Args:
        problem: of the N new tasks, but for its switch rate, [F + N, F + N], which begins with the F fixed ones. With
            an infinite strength saliency counts only between blocks whose loading costs the same.
        fixed: [B, F], masks that stay: True where a task has the very values that a new one would take.

    Returns:
        [B, N] masks; exactly ``budgets[n]`` blocks for new task n, and at least the floors of each weight.
    """
    first, least, saliency = fixed.shape[1], problem.floors, problem.saliency
    keep = np.concatenate([fixed, np.zeros(saliency.shape, bool)], axis=1)
    for _ in range(_ROUNDS):  # in turn, until none would choose otherwise: each round gains, and few are needed
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
    """The first ``budget`` blocks, after the first ``least`` of each weight, if there are floors."""
    weight = np.repeat(np.arange(len(sizes)), sizes)[order] if sizes else order
    chosen = np.zeros(len(order), bool)
    for number, fewest in enumerate(least):
        chosen[order[weight == number][:fewest]] = True
    others = order[~chosen[order]]
    chosen[others[: budget - np.count_nonzero(chosen)]] = True
    return chosen

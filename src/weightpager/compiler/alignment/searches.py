"""The searches for the best masks of tasks that share all values, and what surrounds them. Pure numpy.

``docs/alignment.md`` derives what is computed here. In short: a price per task turns the budgets into costs and makes
the blocks independent of each other; flows between the tasks of a block make the tasks independent of each other; both
together bound what any masks can reach, and lead to masks that nearly do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from weightpager.compiler.alignment.flow_search import FlowSearch
from weightpager.compiler.alignment.nested import NestedProblem, Search, net, top_blocks
from weightpager.compiler.alignment.problem import Alignment, AlignmentProblem, Bools
from weightpager.compiler.alignment.subset_search import SubsetSearch

_TOLERANCE = 1e-5
"""A search ends at this gap: a hundredth of the 0.1 % that a compile aims at."""

_COOLING, _STAGES = 0.25, 14

MakeSearch = Callable[[NestedProblem], Search]

MOST_SUBSET_TASKS = 12
"""Tasks for which all subsets are scored: 4096 scores a block are the most that is still quick."""


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
        make: MakeSearch = SubsetSearch if free.sum() <= MOST_SUBSET_TASKS else FlowSearch
        masks[free], of_free = searched(problem.part(free), make)
        bound += of_free
    return masks, bound


def searched(problem: NestedProblem, make: MakeSearch) -> tuple[Bools, float]:
    """The best masks [T, B] that a search finds while it cools, and an upper bound on all masks within the budgets."""
    search, prices = make(problem), problem.separate_prices()
    best = top_blocks(problem.saliency, problem.budgets)  # what each task would keep on its own
    value, bound = problem.net(best), search.bound(prices)
    temperature = float(max(prices.mean(), problem.saliency.mean())) or 1.0
    for _ in range(_STAGES):
        if bound - value <= _TOLERANCE * abs(bound):
            break
        prices, candidates = search.stage(prices, temperature)
        bound = min(bound, search.bound(prices))
        for masks in candidates:
            reached = problem.net(masks)
            if reached > value:
                best, value = masks, reached
        temperature *= _COOLING
    return best, bound

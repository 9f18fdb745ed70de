"""Orders that gather what the same tasks need into the same blocks: the search, on saliency alone.

Two steps take turns, and neither lowers the saliency that the kept blocks hold. Given who keeps which block, the best
places for the units of a dimension are a linear assignment: every unit is worth to every place what the tasks that
keep the place's blocks would keep of it. Given the places, every task keeps its best blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from weightpager.blocks import BlockGrid
from weightpager.compiler.reorder.dimensions import Dimension, Indices, Part

Floats = npt.NDArray[np.float32]
Keep = Mapping[str, npt.NDArray[np.bool_]]
"""Paged weight → keep masks [tasks, blocks]."""

ROUNDS = 3

_LARGEST = 1024
"""Units that are assigned at once: an assignment takes time with the cube of them."""


Read = Callable[[str, int], Floats]
"""The saliency of a weight's elements to a task, given the weight's tensor and the task's number."""


class Elements:
    """The saliency of every element of every paged weight, in an order that changes.

    Only the orders are kept. Elements are read whenever they are needed, one weight of one task at a time: of all tasks
    together they may take many times the model's memory.

    Attributes:
        grids: weight's tensor → its blocks.
    """

    def __init__(self, read: Read, tasks: int, grids: Mapping[str, BlockGrid]) -> None:
        self.grids = dict(grids)
        self._read = read
        self._tasks = tasks
        self._orders = {
            name: [np.arange(grid.out_features), np.arange(grid.in_features)] for name, grid in grids.items()
        }
        self._blocks: dict[str, npt.NDArray[np.float64]] = {}

    def of(self, name: str) -> Iterator[Floats]:
        """A weight's elements ``[out_features, in_features]``, one task after the other."""
        rows, columns = self._orders[name]
        for task in range(self._tasks):
            yield self._read(name, task).take(rows, 0).take(columns, 1)

    def reorder(self, dimension: Dimension, order: Indices) -> None:
        """Put the units of a dimension in this order ``[groups, units]``."""
        for part in dimension.parts:
            if part.tensor in self.grids:
                orders = self._orders[part.tensor]
                orders[part.axis] = orders[part.axis][part.spread(order)]
                self._blocks.pop(part.tensor, None)

    def width(self, part: Part) -> int:
        """The size of a block along a part."""
        block = self.grids[part.tensor].block
        return block.rows if part.axis == 0 else block.cols

    def blocks(self) -> dict[str, npt.NDArray[np.float64]]:
        """The saliency of the blocks, [tasks, blocks], by tensor."""
        for name in self.grids.keys() - self._blocks.keys():
            self._blocks[name] = self._sums(name)
        return {name: self._blocks[name] for name in self.grids}

    def best(self, densities: npt.NDArray[np.float64]) -> Keep:
        """The blocks that every task would keep on its own: of all weights together, the best share ``[tasks]``."""
        blocks = self.blocks()
        together = np.concatenate(list(blocks.values()), axis=1)
        keep = np.zeros(together.shape, np.bool_)
        for row, mask, density in zip(together, keep, densities, strict=True):
            size = max(1, round(density * len(row)))
            mask[np.argpartition(-row, size - 1)[:size]] = True
        ends = np.cumsum([values.shape[1] for values in blocks.values()])[:-1]
        return dict(zip(blocks, np.split(keep, ends, axis=1), strict=True))

    def by_place(self, part: Part, keep: npt.NDArray[np.bool_]) -> Floats:
        """What the tasks keep, [tasks, blocks], of each element along a part, in each row (or column) of blocks.

        Returns:
            [elements, rows of blocks] for axis 0, [elements, columns of blocks] for axis 1.
        """
        grid = self.grids[part.tensor]
        kept = keep.reshape(-1, grid.rows, grid.cols).astype(np.float32)
        worth: Floats = np.zeros(1, np.float32)
        for values, mask in zip(self.of(part.tensor), kept, strict=True):
            across = values if part.axis == 0 else values.T
            mask = mask if part.axis == 0 else mask.T
            width = grid.block.cols if part.axis == 0 else grid.block.rows
            worth = worth + _summed(across, width) @ mask.T
        return worth

    def _sums(self, name: str) -> npt.NDArray[np.float64]:
        block = self.grids[name].block
        sums = [_summed(_summed(values, block.cols).T, block.rows).T.reshape(-1) for values in self.of(name)]
        return np.stack(sums).astype(np.float64)


def _summed(values: Floats, width: int) -> Floats:
    """Sums of ``width`` neighbours in each row, [rows, ceil(columns / width)]."""
    starts = np.arange(0, values.shape[1], width)
    return np.asarray(np.add.reduceat(values, starts, axis=1))


def gather(
    elements: Elements, dimensions: Sequence[Dimension], densities: npt.NDArray[np.float64], rounds: int = ROUNDS
) -> list[tuple[Dimension, Indices]]:
    """Reorder ``elements``, comparable between tasks, along the dimensions in place; the orders, one after the other.

    ``densities`` are the share of all blocks that each task keeps, [tasks].
    """
    applied: list[tuple[Dimension, Indices]] = []

    def apply(dimension: Dimension, order: Indices) -> None:
        elements.reorder(dimension, order)
        applied.append((dimension, order))

    useful = [dimension for dimension in dimensions if _changes_blocks(dimension, elements)]
    for dimension in useful:
        apply(dimension, by_importance(elements, dimension))
    for _ in range(rounds):
        for dimension in useful:
            apply(dimension, assigned(elements, dimension, elements.best(densities)))
    return applied


def _changes_blocks(dimension: Dimension, elements: Elements) -> bool:
    """Whether a block's content depends on the order: whole blocks that move stay the same blocks."""
    return any(part.inner % elements.width(part) for part in dimension.parts if part.tensor in elements.grids)


def by_importance(elements: Elements, dimension: Dimension) -> Indices:
    """Units from the most important to the least, all tasks and weights together."""
    total = np.zeros((dimension.groups, dimension.units))
    for part in dimension.parts:
        for values in elements.of(part.tensor) if part.tensor in elements.grids else ():
            along = values.sum(1 - part.axis, dtype=np.float64)
            total += along.reshape(dimension.groups, part.repeat, dimension.units, part.inner).sum((1, 3))
    return np.argsort(-total, axis=1, kind="stable")


def assigned(elements: Elements, dimension: Dimension, keep: Keep) -> Indices:
    """The best order for these masks; of a large dimension, the best for shares of its units at a time."""
    worth = np.zeros((dimension.groups, dimension.units, dimension.units), np.float32)  # [groups, unit, place]
    for part in dimension.parts:
        if part.tensor in elements.grids:
            worth += _worth(elements, dimension, part, keep[part.tensor])
    order = dimension.unchanged
    for group in range(dimension.groups):
        shares = -(-dimension.units // _LARGEST)
        for share in range(shares):
            some = np.arange(share, dimension.units, shares)
            units, places = linear_sum_assignment(worth[group][np.ix_(some, some)], maximize=True)
            order[group, some[places]] = some[units]
    return order


def _worth(elements: Elements, dimension: Dimension, part: Part, keep: npt.NDArray[np.bool_]) -> Floats:
    by_place = elements.by_place(part, keep)  # [elements, blocks along the axis]
    width = elements.width(part)
    cut = np.arange(len(by_place)).reshape(dimension.groups, part.repeat, dimension.units, part.inner)
    worth = np.zeros((dimension.groups, dimension.units, dimension.units), np.float32)
    for group in range(dimension.groups):
        for run in range(part.repeat):
            for inner in range(part.inner):
                at = cut[group, run, :, inner]
                worth[group] += by_place[np.ix_(at, at // width)]
    return worth

"""Where the kept blocks of one paged weight are, for one task: BSR indices plus a location for each block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from weightpager.blocks import BlockGrid
from weightpager.bundle.format.manifest import Manifest

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

FIELDS = ("crow_indices", "col_indices", "locations")
"""A table's arrays."""


@dataclass(frozen=True)
class BlockTable:
    """Where a task's blocks of one paged weight lie: block compressed sparse rows, immutable.

    Attributes:
        crow_indices: int32 [grid rows + 1]: block row r holds entries ``crow[r]:crow[r + 1]``.
        col_indices: int32 [kept]: block column, ascending inside a row.
        locations: int32 [kept]: page index × blocks per page + place in the page.
    """

    crow_indices: Int32
    col_indices: Int32
    locations: Int32

    @property
    def kept(self) -> int:
        return len(self.col_indices)

    def rows(self) -> npt.NDArray[np.int64]:
        """The block row of each kept block, [kept]."""
        return np.repeat(np.arange(len(self.crow_indices) - 1), np.diff(self.crow_indices))

    def blocks(self, grid: BlockGrid) -> npt.NDArray[np.int64]:
        """Each kept block's index in the grid, row-major, [kept]."""
        return np.asarray(self.rows() * grid.cols + self.col_indices)


@dataclass(frozen=True)
class BlockNumbers:
    """The paged weights in manifest order, and which numbers their blocks have.

    A block's number in its layer is what files hold. Its number in the bundle adds those of the layers before.

    Attributes:
        starts: int64 [layers + 1], the number in the bundle of each layer's first block.
        first: int64 [weights], the number in the bundle of each weight's first block.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    grids: tuple[BlockGrid, ...]
    starts: Int64
    first: Int64

    @classmethod
    def of(cls, manifest: Manifest) -> BlockNumbers:
        layers = np.array([weight.layer for weight in manifest.weights], np.int64)
        grids = tuple(manifest.grid(weight) for weight in manifest.weights)
        counts = np.array([grid.count for grid in grids], np.int64)
        order = np.argsort(layers, kind="stable")
        first = np.empty(len(counts), np.int64)
        first[order] = np.cumsum(counts[order]) - counts[order]
        sizes = np.zeros(manifest.layers, np.int64)
        np.add.at(sizes, layers, counts)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        return cls(tuple(weight.name for weight in manifest.weights), tuple(layers.tolist()), grids, starts, first)

    @property
    def total(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The dtype of numbers in a layer: uint16 if no layer has more than 65,535 blocks, else uint32."""
        wide = int(np.diff(self.starts).max()) > np.iinfo(np.uint16).max
        return np.dtype(np.uint32 if wide else np.uint16)

    @property
    def unused(self) -> int:
        """The number that stands for no block: the largest one."""
        return int(np.iinfo(self.dtype).max)

    @cached_property
    def rows(self) -> tuple[int, ...]:
        return tuple(grid.rows for grid in self.grids)

    def in_layer(self, weights: npt.NDArray[np.integer], blocks: npt.NDArray[np.integer]) -> Int64:
        """Numbers in their layers of blocks, given their weights' positions and their indices in those grids."""
        starts = self.starts[np.array(self.layers, np.int64)]
        return np.asarray((self.first - starts)[weights] + blocks)

    def split(self, numbers: Int64) -> Sequence[slice]:
        """The slice of some ascending numbers in the bundle that belongs to each weight."""
        ends = self.first + np.array([grid.count for grid in self.grids], np.int64)
        begin, end = np.searchsorted(numbers, self.first), np.searchsorted(numbers, ends)
        return [slice(a, b) for a, b in zip(begin.tolist(), end.tolist(), strict=True)]

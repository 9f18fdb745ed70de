"""Where the kept blocks of one paged weight are, for one task: BSR indices plus a location for each block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from weightpager.blocks import BlockGrid, KeepMask
from weightpager.bundle.files.tensor_file import Header, TensorInfo
from weightpager.bundle.format.manifest import Manifest
from weightpager.errors import BundleFormatError

Int32 = npt.NDArray[np.int32]

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

    @classmethod
    def build(cls, keep: KeepMask, locations: npt.NDArray[np.int64]) -> BlockTable:
        """The table of a keep mask ``[grid rows, grid cols]`` and every block's location (same shape)."""
        crow = np.zeros(len(keep) + 1, np.int32)
        np.cumsum(keep.sum(1), out=crow[1:])
        cols = np.nonzero(keep)[1].astype(np.int32)
        return cls(crow, cols, locations[keep].astype(np.int32))

    @property
    def kept(self) -> int:
        """Number of kept blocks."""
        return len(self.col_indices)

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.crow_indices.nbytes + self.col_indices.nbytes + self.locations.nbytes

    def rows(self) -> npt.NDArray[np.int64]:
        """Block row of each kept block, [kept]."""
        return np.repeat(np.arange(len(self.crow_indices) - 1), np.diff(self.crow_indices))

    def blocks(self, grid: BlockGrid) -> npt.NDArray[np.int64]:
        """Each kept block's index in the grid, row-major, [kept]."""
        return np.asarray(self.rows() * grid.cols + self.col_indices)

    @staticmethod
    def check_header(stated: Header, grid: BlockGrid, file: str, name: str) -> None:
        """Check dtypes and lengths in a file's header, before arrays are read.

        Args:
            stated: what is said of each of `FIELDS`.
            grid: the weight's blocks.
            file: named in the error.
            name: of the weight, named in the error.

        Raises:
            BundleFormatError: a dtype or a length is wrong.
        """
        for field in FIELDS:
            if stated[field].dtype != "int32" or len(stated[field].shape) != 1:
                raise BundleFormatError(file, f"{name}.{field}", "int32 [n]", stated[field])
        rows, kept, locations = (stated[field].shape[0] for field in FIELDS)
        if rows != grid.rows + 1:
            raise BundleFormatError(file, f"{name}.crow_indices", f"{grid.rows + 1} entries", rows)
        if kept > grid.count:
            raise BundleFormatError(file, f"{name}.col_indices", f"at most {grid.count} entries", kept)
        if kept != locations:
            raise BundleFormatError(file, f"{name}.locations", f"{kept} entries", locations)

    def validate(self, grid: BlockGrid, locations: int, file: str, name: str) -> None:
        """Refuse whatever a kernel can't take.

        Args:
            grid: the weight's blocks.
            locations: how many locations the bundle has.
            file: named in the error.
            name: of the weight, named in the error.

        Raises:
            BundleFormatError: a dtype, shape, order or bound is wrong.
        """

        def wrong(field: str, expected: str, found: object) -> BundleFormatError:
            return BundleFormatError(file, f"{name}.{field}", expected, found)

        crow, cols, where = self.crow_indices, self.col_indices, self.locations
        arrays = ((field, getattr(self, field)) for field in FIELDS)
        stated = {field: TensorInfo(str(array.dtype), array.shape) for field, array in arrays}
        self.check_header(stated, grid, file, name)
        if crow[0] != 0 or crow[-1] != len(cols) or (crow[1:] < crow[:-1]).any():
            raise wrong("crow_indices", f"rising from 0 to {len(cols)}", f"{crow[0]} … {crow[-1]}")
        if len(cols) == 0:
            return
        if cols.min() < 0 or cols.max() >= grid.cols:
            raise wrong("col_indices", f"0 to {grid.cols - 1}", f"{cols.min()} to {cols.max()}")
        flat = self.blocks(grid)
        if (flat[1:] <= flat[:-1]).any():
            raise wrong("col_indices", "ascending inside each row", "another order")
        if where.min() < 0 or where.max() >= locations:
            raise wrong("locations", f"0 to {locations - 1}", f"{where.min()} to {where.max()}")


Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BlockNumbers:
    """The paged weights in manifest order, and which numbers their blocks have.

    A block's number in its layer is what files hold. Its number in the bundle adds those of the layers before.

    Attributes:
        names: names of the weights.
        layers: model layers of the weights.
        grids: block grids of the weights.
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
        """Those of a bundle."""
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
        """Blocks of all weights."""
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
        """Rows of blocks of each weight."""
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

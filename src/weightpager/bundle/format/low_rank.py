"""Low-rank pages: a task's low-rank parts in pages of their own, which no other task needs and no placement describes.

A part is ``up @ down``, added to a paged weight. Its two matrices are cut into blocks of int8, as weights are. All
parts' A lie one block after the other in the first of the task's low-rank pages, and all B in the others; both in the
order of the weights' layers. A page may hold blocks of several layers, and counts as of the first of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.bundle.format.block_table import BlockTable, Int32, Int64
from weightpager.bundle.format.manifest import LOW_RANK_DTYPE, Manifest, TaskEntry
from weightpager.page_dtype import block_bytes, decode, encode, page_blocks, page_content

_BLOCK, _LONGEST, _SHORTEST = 2**11, 64, 8
"""Weights in a block at most, which the smallest page holds, and the features that it spans beside the rank."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LowRank:
    """What is added to one paged weight: ``up @ down``, PEFT's scaling folded in.

    Attributes:
        down: float32 [rank, in_features], PEFT's A.
        up: float32 [out_features, rank], PEFT's B.
    """

    down: Float32
    up: Float32


@dataclass(frozen=True)
class LowRankTables:
    """Where the blocks of one weight's part lie: those of A and those of B."""

    down: BlockTable
    up: BlockTable


@dataclass(frozen=True)
class BlockRun:
    """The blocks of several matrices one after the other, in pages that hold nothing else.

    Attributes:
        grids: of the matrices, which are cut into blocks of one shape.
        layers: int64 [matrices], the model layer of each, ascending.
        places: blocks in a page.
    """

    grids: tuple[BlockGrid, ...]
    layers: Int64
    places: int

    @property
    def block(self) -> BlockShape:
        return self.grids[0].block

    def _each(self, name: str) -> Int64:
        """One of the grids' sizes, int64 [matrices]."""
        return np.array([getattr(grid, name) for grid in self.grids], np.int64)

    @property
    def count(self) -> int:
        return sum(grid.count for grid in self.grids)

    @property
    def pages(self) -> int:
        return -(-self.count // self.places)

    def page_layers(self) -> Int32:
        """The model layer of each page, int32 [pages]."""
        counts = self._each("count")
        first = np.searchsorted(np.cumsum(counts), np.arange(self.pages) * self.places, side="right")
        return self.layers[first].astype(np.int32)

    @property
    def entries(self) -> int:
        """Numbers in the block tables of all matrices."""
        return sum(grid.rows + 1 for grid in self.grids) + 2 * self.count

    def fill(self, memory: Int32, pages: npt.NDArray[np.integer]) -> None:
        """Write the block tables into int32 [entries], in terms of these numbers of the pages [pages]."""
        rows, cols, counts = self._each("rows"), self._each("cols"), self._each("count")
        ends = int((rows + 1).sum())
        memory[:ends] = _counted(rows + 1) * np.repeat(cols, rows + 1)
        memory[ends : ends + self.count] = _counted(counts) % np.repeat(cols, counts)
        page, place = np.divmod(np.arange(self.count), self.places)
        memory[ends + self.count :] = pages[page] * self.places + place

    def tables(self, memory: Int32) -> list[BlockTable]:
        """The tables of all matrices in that memory, by which they change."""
        rows, counts = self._each("rows") + 1, self._each("count")
        ends = int(rows.sum())
        crow = np.split(memory[:ends], np.cumsum(rows)[:-1])
        columns, locations = (np.split(half, np.cumsum(counts)[:-1]) for half in np.split(memory[ends:], 2))
        return [BlockTable(*arrays) for arrays in zip(crow, columns, locations, strict=True)]

    def content(self, matrices: Sequence[Float32], page_bytes: int) -> Iterator[bytes]:
        """The pages' bytes."""
        cut = [grid.cut(matrix) for grid, matrix in zip(self.grids, matrices, strict=True)]
        flat = np.concatenate([each.reshape(-1, *each.shape[2:]) for each in cut])
        for start in range(0, self.count, self.places):
            blocks = encode(np.asarray(flat[start : start + self.places], np.float32), LOW_RANK_DTYPE)
            full = np.zeros((self.places, blocks.shape[1]), np.uint8)
            full[: len(blocks)] = blocks
            yield page_content(full, self.block, LOW_RANK_DTYPE, page_bytes)

    def matrices(self, pages: Iterable[npt.NDArray[np.uint8]]) -> list[Float32]:
        """The inverse of `content`, save for what rounding took."""
        blocks = np.concatenate([page_blocks(page, self.places, self.block, LOW_RANK_DTYPE) for page in pages])[
            : self.count
        ]
        values = decode(blocks, self.block, LOW_RANK_DTYPE)
        cut = np.split(values, np.cumsum(self._each("count"))[:-1])
        return [
            np.ascontiguousarray(grid.join(each.reshape(grid.rows, grid.cols, *each.shape[1:])), np.float32)
            for grid, each in zip(self.grids, cut, strict=True)
        ]


@dataclass(frozen=True)
class LowRankLayout:
    """How one task's low-rank parts lie in its low-rank pages.

    Attributes:
        names: of the paged weights that have a part, in the order of their layers.
        down, up: the blocks of all A, and those of all B.
    """

    names: tuple[str, ...]
    down: BlockRun
    up: BlockRun

    @classmethod
    def of(cls, manifest: Manifest, task: TaskEntry) -> LowRankLayout | None:
        """A task's layout; None if it has no low-rank pages."""
        entry = task.low_rank
        if entry is None:
            return None
        weights = sorted((manifest.weights[at] for at in entry.weights), key=lambda weight: weight.layer)
        wide = min(256, max(8, 1 << (entry.rank - 1).bit_length()))
        long = max(_SHORTEST, min(_LONGEST, _BLOCK // wide))
        down = [BlockGrid(entry.rank, weight.in_features, BlockShape(wide, long)) for weight in weights]
        up = [BlockGrid(weight.out_features, entry.rank, BlockShape(long, wide)) for weight in weights]
        layers = np.array([weight.layer for weight in weights], np.int64)
        runs = (
            BlockRun(tuple(grids), layers, manifest.page_bytes // block_bytes(grids[0].block, LOW_RANK_DTYPE))
            for grids in (down, up)
        )
        return cls(tuple(weight.name for weight in weights), *runs)

    @property
    def pages(self) -> int:
        return self.down.pages + self.up.pages

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks."""
        return sum(run.count * block_bytes(run.block, LOW_RANK_DTYPE) for run in (self.down, self.up))

    def page_layers(self) -> Int32:
        """The model layer of each page, int32 [pages]."""
        return np.concatenate([self.down.page_layers(), self.up.page_layers()])

    @property
    def entries(self) -> int:
        """Numbers in all block tables."""
        return self.down.entries + self.up.entries

    def fill(self, memory: Int32, pages: npt.NDArray[np.integer]) -> None:
        """Write all block tables into int32 [entries], in terms of these numbers of the pages [pages]."""
        self.down.fill(memory[: self.down.entries], pages[: self.down.pages])
        self.up.fill(memory[self.down.entries :], pages[self.down.pages :])

    def tables(self, memory: Int32) -> dict[str, LowRankTables]:
        """The tables in that memory, by paged weight."""
        down, up = self.down.tables(memory[: self.down.entries]), self.up.tables(memory[self.down.entries :])
        return {name: LowRankTables(*pair) for name, *pair in zip(self.names, down, up, strict=True)}

    def content(self, parts: Mapping[str, LowRank], page_bytes: int) -> Iterator[bytes]:
        """The pages' bytes. Parts of a lower rank than the layout's are padded with zeros."""
        rank = self.down.grids[0].out_features
        found = [parts[name] for name in self.names]
        yield from self.down.content([_padded(part.down, 0, rank) for part in found], page_bytes)
        yield from self.up.content([_padded(part.up, 1, rank) for part in found], page_bytes)

    def parts(self, pages: Sequence[npt.NDArray[np.uint8]]) -> dict[str, LowRank]:
        """The parts by paged weight, as kernels see them, of the pages' bytes."""
        downs, ups = self.down.matrices(pages[: self.down.pages]), self.up.matrices(pages[self.down.pages :])
        return {name: LowRank(*pair) for name, *pair in zip(self.names, downs, ups, strict=True)}


def _counted(counts: Int64) -> Int64:
    """0, 1, 2 … anew for each count."""
    starts = np.cumsum(counts) - counts
    return np.asarray(np.arange(int(counts.sum())) - np.repeat(starts, counts))


def _padded(values: Float32, axis: int, size: int) -> Float32:
    more = [(0, 0), (0, 0)]
    more[axis] = (0, size - values.shape[axis])
    return np.pad(values, more)

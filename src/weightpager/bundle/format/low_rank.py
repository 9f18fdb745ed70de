"""Low-rank pages: a task's low-rank parts in pages of their own, which no other task needs and no placement describes.

A part is ``up @ down``, added to a paged weight. Its two matrices are cut into blocks of int8, as weights are. All
parts' A lie one block after the other in the first of the task's low-rank pages, and all B in the others; both in the
order of the weights' layers. A page may hold blocks of several layers, and counts as of the first of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.bundle.format.block_table import BlockTable, Int32, Int64
from weightpager.bundle.format.manifest import LOW_RANK_DTYPE, Manifest, TaskEntry
from weightpager.page_dtype import block_bytes, decode, encode, page_blocks, page_content

_BLOCK, _LONGEST, _SHORTEST = 2**11, 64, 8
"""Weights in a block at most, which the smallest page holds, and the features that it spans beside the rank."""

LEAST_BLOCK = 512
"""Bytes that every block has at least."""

Float32 = npt.NDArray[np.float32]
Octets = npt.NDArray[np.uint8]


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
class StoredParts:
    """A task's low-rank parts as they are stored: uint8 [blocks, block bytes] of all A, and of all B."""

    down: Octets
    up: Octets


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

    def encoded(self, matrices: Sequence[Float32]) -> Octets:
        """Matrices' blocks as they are stored, uint8 [count, block bytes]."""
        cut = [grid.cut(matrix) for grid, matrix in zip(self.grids, matrices, strict=True)]
        flat = np.concatenate([each.reshape(-1, *each.shape[2:]) for each in cut])
        return encode(np.asarray(flat, np.float32), LOW_RANK_DTYPE)

    def matrices(self, blocks: Octets) -> list[Float32]:
        """The inverse of `encoded`, save for what rounding took."""
        cut = np.split(decode(blocks, self.block, LOW_RANK_DTYPE), np.cumsum(self._each("count"))[:-1])
        return [
            np.ascontiguousarray(grid.join(each.reshape(grid.rows, grid.cols, *each.shape[1:])), np.float32)
            for grid, each in zip(self.grids, cut, strict=True)
        ]

    def content(self, blocks: Octets, page_bytes: int) -> Iterator[bytes]:
        """The bytes of the pages that stored blocks lie in."""
        padded = np.zeros((self.pages * self.places, blocks.shape[1]), np.uint8)
        padded[: self.count] = blocks
        for page in padded.reshape(self.pages, self.places, -1):
            yield page_content(page, self.block, LOW_RANK_DTYPE, page_bytes)

    def blocks(self, pages: Sequence[Octets]) -> Octets:
        """The inverse of `content`."""
        blocks = [page_blocks(page, self.places, self.block, LOW_RANK_DTYPE) for page in pages]
        return np.concatenate(blocks)[: self.count]


@dataclass(frozen=True)
class LowRankLayout:
    """How one task's low-rank parts lie in its low-rank pages.

    Attributes:
        names: of the paged weights that have a part, in the order of their layers.
        down: the blocks of all A.
        up: those of all B.
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

    def encoded(self, parts: Mapping[str, LowRank]) -> StoredParts:
        """Parts as they are stored. Those of a lower rank than the layout's are padded with zeros."""
        rank = self.down.grids[0].out_features
        found = [parts[name] for name in self.names]
        down = self.down.encoded([_padded(part.down, 0, rank) for part in found])
        return StoredParts(down, self.up.encoded([_padded(part.up, 1, rank) for part in found]))

    def parts(self, stored: StoredParts) -> dict[str, LowRank]:
        """The parts by paged weight, as kernels see them."""
        downs, ups = self.down.matrices(stored.down), self.up.matrices(stored.up)
        return {name: LowRank(*pair) for name, *pair in zip(self.names, downs, ups, strict=True)}

    def content(self, stored: StoredParts, page_bytes: int) -> Iterator[bytes]:
        """The bytes of the pages that parts lie in."""
        yield from self.down.content(stored.down, page_bytes)
        yield from self.up.content(stored.up, page_bytes)

    def stored(self, pages: Sequence[Octets]) -> StoredParts:
        """The inverse of `content`."""
        return StoredParts(self.down.blocks(pages[: self.down.pages]), self.up.blocks(pages[self.down.pages :]))


def _counted(counts: Int64) -> Int64:
    """0, 1, 2 … anew for each count."""
    starts = np.cumsum(counts) - counts
    return np.asarray(np.arange(int(counts.sum())) - np.repeat(starts, counts))


def _padded(values: Float32, axis: int, size: int) -> Float32:
    more = [(0, 0), (0, 0)]
    more[axis] = (0, size - values.shape[axis])
    return np.pad(values, more)

"""Whole weights: matrices that are always whole in memory, in blocks of few bits that kernels read.

A pooler is one, a decoder's head, or a table that a head is tied to. A parameter file holds it as uint8 [rows of
blocks, bytes of such a row]: a row of blocks lies as it would in a page of just that size, first the numbers of all its
blocks and then their scales.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.bundle.files.strict import Strict
from weightpager.bundle.files.tensor_file import Header, TensorInfo
from weightpager.errors import BundleFormatError
from weightpager.page_dtype import ENCODINGS, PageDtype, block_bytes, decode, encode

STORED = "uint8"
"""The dtype of a weight in blocks. A tensor of its name that has another one is an ordinary parameter."""

_KERNEL_BYTES = 8
"""Bytes of memory for each block: its column and its location, as kernels want them."""

_ROW_BYTES = 8
"""Bytes of memory for each row of blocks: where it begins, and its page."""

_BLOCKS_HIGH = 64
"""Rows of blocks that are encoded or decoded at once."""


class WholeWeightEntry(Strict, frozen=True, kw_only=True):
    """What the manifest says of a whole weight, in blocks of a dtype whose rows have scales."""

    name: Annotated[str, Meta(min_length=1, max_length=512)]
    rows: Annotated[int, Meta(ge=1, lt=2**31)]
    columns: Annotated[int, Meta(ge=1, le=2**24)]
    dtype: PageDtype

    def __post_init__(self) -> None:
        if not ENCODINGS[self.dtype].scaled:
            raise ValueError(f"a dtype whose rows have scales, got {self.dtype}")

    def stored(self, block: BlockShape) -> TensorInfo:
        """What the header of a parameter file says of it."""
        grid = self.grid(block)
        return TensorInfo(STORED, (grid.rows, grid.cols * block_bytes(block, self.dtype)))

    def grid(self, block: BlockShape) -> BlockGrid:
        return BlockGrid(self.rows, self.columns, block)

    def bytes(self, block: BlockShape) -> int:
        rows, size = self.stored(block).shape
        return rows * size

    def memory(self, block: BlockShape) -> int:
        """Bytes of memory: its blocks, and what kernels need to find them."""
        grid = self.grid(block)
        return self.bytes(block) + _KERNEL_BYTES * grid.count + _ROW_BYTES * (grid.rows + 1)


def encode_whole(values: npt.NDArray[np.float32], entry: WholeWeightEntry, block: BlockShape) -> npt.NDArray[np.uint8]:
    """A weight ``[rows, columns]`` as it is stored; a block is rounded as those of pages are."""
    size, parts = _number_bytes(entry, block), []
    for first in range(0, entry.rows, _BLOCKS_HIGH * block.rows):
        part = values[first : first + _BLOCKS_HIGH * block.rows]
        cut = BlockGrid(len(part), entry.columns, block).cut(part)  # [n, cols, BH, BW]
        blocks = encode(np.ascontiguousarray(cut, np.float32).reshape(-1, block.rows, block.cols), entry.dtype)
        by_row = blocks.reshape(*cut.shape[:2], -1)
        parts.append(np.concatenate([piece.reshape(len(cut), -1) for piece in np.split(by_row, [size], 2)], 1))
    return np.concatenate(parts)


def decode_whole(stored: npt.NDArray[np.uint8], entry: WholeWeightEntry, block: BlockShape) -> npt.NDArray[np.float32]:
    """The values ``[rows, columns]`` of a weight as it is stored; exact."""
    size, cols = _number_bytes(entry, block), entry.grid(block).cols
    values = np.empty((entry.rows, entry.columns), np.float32)
    for first in range(0, len(stored), _BLOCKS_HIGH):
        pieces = np.split(stored[first : first + _BLOCKS_HIGH], [cols * size], 1)
        n = len(pieces[0])
        blocks = np.concatenate([piece.reshape(n * cols, -1) for piece in pieces], 1)
        cut = decode(blocks, block, entry.dtype).reshape(n, cols, block.rows, block.cols)
        into = values[first * block.rows : (first + n) * block.rows]
        into[:] = BlockGrid(len(into), entry.columns, block).join(cut)
    return values


def _number_bytes(entry: WholeWeightEntry, block: BlockShape) -> int:
    return ENCODINGS[entry.dtype].number_bytes(block.rows, block.cols)


def check_whole(header: Header, entries: Iterable[WholeWeightEntry], block: BlockShape, file: str) -> None:
    """Refuse a parameter file that has a weight in blocks of another size than its entry says."""
    for entry in entries:
        found = header.get(entry.name)
        if found is not None and found.dtype == STORED and found != entry.stored(block):
            wanted = f"{entry.stored(block)} for {entry.rows}x{entry.columns} in blocks of {block} {entry.dtype}"
            raise BundleFormatError(file, entry.name[:400], wanted, found)


def stored_in(header: Header, entries: Iterable[WholeWeightEntry]) -> list[WholeWeightEntry]:
    """The weights that a parameter file has in blocks."""
    return [entry for entry in entries if entry.name in header and header[entry.name].dtype == STORED]

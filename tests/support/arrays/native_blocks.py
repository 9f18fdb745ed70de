"""Weights in blocks as the native module knows them, made of arrays alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from weightpager.backends.native.lowering import Blocks
from weightpager.blocks import BlockShape
from weightpager.kernels import PagedWeight
from weightpager.page_dtype import block_bytes, decode, encode, page_content

BLOCK = BlockShape(16, 32)


def blocks_of(
    weight: Any, dtype: str = "float32", layer: int | None = None, table: bool = False
) -> tuple[Blocks, Any, Any]:
    """A weight in pages of one row of blocks each.

    Args:
        weight: float32 [out, in]; blocks of zeros alone aren't kept, unless it is a table.
        dtype: of the pages.
        layer: of the weight's pages.
        table: see `Blocks`.

    Returns:
        The weight; what its blocks hold, float32 [out, in]; and its page table, int32 [pages].
    """
    height, width = BLOCK.rows, BLOCK.cols
    rows, cols = -(-weight.shape[0] // height), -(-weight.shape[1] // width)
    padded = np.zeros((rows * height, cols * width), np.float32)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    grid = padded.reshape(rows, height, cols, width).swapaxes(1, 2)
    kept = np.ones((rows, cols), bool) if table else grid.any((2, 3))
    page_bytes = cols * block_bytes(BLOCK, dtype)
    arena = np.zeros((rows, page_bytes), np.uint8)
    dense = np.zeros_like(grid)
    columns: list[int] = []
    locations: list[int] = []
    for row in range(rows):
        places = np.flatnonzero(kept[row])
        stored = encode(grid[row], dtype)
        arena[row] = np.frombuffer(page_content(stored, BLOCK, dtype, page_bytes), np.uint8)
        dense[row, places] = decode(stored, BLOCK, dtype)[places]
        columns += places.tolist()
        locations += (row * cols + places).tolist()
    page_table = np.arange(rows, dtype=np.int32)
    paged = PagedWeight(
        arena=arena,
        page_table=page_table,
        crow_indices=np.concatenate([[0], kept.sum(1).cumsum()]).astype(np.int32),
        col_indices=np.array(columns, np.int32),
        locations=np.array(locations, np.int32),
        out_features=weight.shape[0],
        in_features=weight.shape[1],
        block_rows=height,
        block_cols=width,
        dtype=dtype,
    )
    whole = dense.swapaxes(1, 2).reshape(padded.shape)[: weight.shape[0], : weight.shape[1]]
    return Blocks(paged, layer, table), whole, page_table

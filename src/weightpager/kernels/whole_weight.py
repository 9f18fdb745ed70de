"""A weight all of whose blocks are there: multiplied by as any other, and its rows looked up as an embedding's are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.kernels.paged_weight import Indices, PagedWeight


def whole_weight(
    pages: npt.NDArray[np.uint8], rows: int, columns: int, block: tuple[int, int], dtype: str
) -> PagedWeight:
    """The weight ``[rows, columns]`` of which a page is a row of blocks, in the blocks' order.

    Args:
        pages: uint8 [rows of blocks, bytes of such a row]; referred to, not copied.
        rows: of the weight.
        columns: of the weight.
        block: rows and columns of a block.
        dtype: of the blocks, one whose rows have scales.

    Raises:
        ValueError: something is not as described.
    """
    grid_rows, grid_cols = -(-rows // block[0]), -(-columns // block[1])

    def count(end: int, step: int = 1) -> Indices:
        return np.arange(0, end, step, dtype=np.int32)

    weight = PagedWeight(
        arena=pages,
        page_table=count(grid_rows),
        crow_indices=count(grid_rows * grid_cols + 1, grid_cols),
        col_indices=np.tile(count(grid_cols), grid_rows),
        locations=count(grid_rows * grid_cols),
        out_features=rows,
        in_features=columns,
        block_rows=block[0],
        block_cols=block[1],
        dtype=dtype,
    )
    size = grid_cols * (weight.block_bytes + weight.scale_bytes)
    if tuple(pages.shape) != (grid_rows, size) or not weight.encoding.scaled:
        raise ValueError(f"pages: expected {grid_rows} of {size} bytes, with scales, got {dtype} {list(pages.shape)}")
    return weight

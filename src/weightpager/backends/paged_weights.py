"""A task's paged weights over the arena, as kernels on the host take them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.bundle import BlockTable, Bundle, WeightEntry
from weightpager.kernels import PagedWeight


def of_entry(
    bundle: Bundle,
    entry: WeightEntry,
    table: BlockTable,
    arena: npt.NDArray[np.uint8],
    page_table: npt.NDArray[np.int32],
) -> PagedWeight:
    """A task's view of one paged weight.

    Args:
        bundle: with the weight.
        entry: of the weight.
        table: the task's block table, in terms of the page table's pages; referred to, not copied.
        arena: uint8 [slots, page_bytes].
        page_table: int32 [pages].
    """
    block = bundle.manifest.block_shape
    return PagedWeight(
        arena=arena,
        page_table=page_table,
        crow_indices=table.crow_indices,
        col_indices=table.col_indices,
        locations=table.locations,
        out_features=entry.out_features,
        in_features=entry.in_features,
        block_rows=block.rows,
        block_cols=block.cols,
        dtype=bundle.manifest.dtype,
    )

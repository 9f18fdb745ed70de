"""What a kernel computes with: one paged weight of one task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.kernels.blocked import Blocked

Indices = npt.NDArray[np.int32]


class PageNotResidentError(RuntimeError):
    """A kernel met a page that isn't in the arena. Nothing was computed."""

    def __init__(self, page: int) -> None:
        super().__init__(f"page {page} is not in the arena: expected every page of a weight to be loaded before use")
        self.page = page


@dataclass(frozen=True, slots=True, eq=False)
class PagedWeight(Blocked):
    """One paged weight ``[out_features, in_features]`` of one task, as a kernel on the host sees it. Arrays only.

    The weight is cut into blocks of ``block_rows x block_cols``, zero-padded at the edges. How they lie in pages is
    described in `weightpager.page_dtype`.

    Everything but the arena's bytes and the page table's entries is checked here, once, and must not change afterwards.
    Those two change with every load; kernels look at an entry each time they use it.

    Attributes:
        arena: uint8 [slots, page_bytes].
        page_table: int32 [pages], page index -> slot, -1 where absent; updated in place, at a fixed address.
        crow_indices: int32 [grid_rows + 1], where each row's blocks start in the two that follow.
        col_indices: int32 [kept], ascending within a row.
        locations: int32 [kept], page index * blocks_per_page + place in page.
        out_features: of the layer, which needn't be a multiple of ``block_rows``.
        in_features: of the layer, which needn't be a multiple of ``block_cols``.
        block_rows: output features of a block, a power of two from 8 to 256.
        block_cols: input features of a block, a power of two from 8 to 256.
        dtype: the pages' dtype, a name in `ENCODINGS`.
        native: what the native kernels made of all this, at their first call.

    Raises:
        ValueError: something is not as described; the text says what.
    """

    arena: npt.NDArray[np.uint8]
    page_table: Indices
    crow_indices: Indices
    col_indices: Indices
    locations: Indices
    out_features: int
    in_features: int
    block_rows: int
    block_cols: int
    dtype: str
    native: list[Any] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self.check_sizes()
        _check_array("arena", self.arena, np.uint8, 2)
        for name in ("page_table", "crow_indices", "col_indices", "locations"):
            _check_array(name, getattr(self, name), np.int32, 1)
        check_tables(self, len(self.page_table), self.crow_indices, self.col_indices, self.locations)


def check_tables(of: Blocked, pages: int, crow: Indices, columns: Indices, locations: Indices) -> None:
    """See that a weight's block table fits its sizes, its arena and a page table.

    Args:
        of: the weight, whose sizes have been checked.
        pages: entries of the page table.
        crow: its rows, on the host, as the others.
        columns: its columns.
        locations: its locations.

    Raises:
        ValueError: it doesn't; the text says where.
    """
    grid_rows, grid_cols = of.grid
    least = of.block_bytes + of.scale_bytes
    if of.arena.shape[1] < least:
        raise ValueError(f"arena: expected pages of at least {least} bytes, got {of.arena.shape[1]}")
    if len(crow) != grid_rows + 1:
        raise ValueError(f"crow_indices: expected {grid_rows + 1} entries, got {len(crow)}")
    if locations.shape != columns.shape:
        raise ValueError(f"locations: expected {len(columns)} entries, got {len(locations)}")
    if (crow[0], crow[-1]) != (0, len(columns)):
        raise ValueError(f"crow_indices: expected them to go from 0 to {len(columns)}, got {crow[0]} to {crow[-1]}")
    if (crow[1:] < crow[:-1]).any():
        raise ValueError("crow_indices: expected ascending entries, got a descent")
    _check_range("col_indices", columns, grid_cols)
    place = np.repeat(np.arange(grid_rows), np.diff(crow)) * grid_cols + columns  # [kept]
    if (np.diff(place) <= 0).any():
        raise ValueError("col_indices: expected strictly ascending entries in each row, got some that are not")
    _check_range("locations", locations, pages * of.blocks_per_page)


def _check_array(name: str, array: npt.NDArray[Any], dtype: type, dimensions: int) -> None:
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name}: expected a numpy array, got {type(array).__name__}")
    if array.dtype != dtype or array.ndim != dimensions:
        raise ValueError(f"{name}: expected {dimensions}-d {np.dtype(dtype)}, got {array.ndim}-d {array.dtype}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: expected a contiguous array, got strides {array.strides}")


def _check_range(name: str, indices: Indices, end: int) -> None:
    if not len(indices):
        return
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= end:
        raise ValueError(f"{name}: expected entries from 0 to {end - 1}, got {low} to {high}")

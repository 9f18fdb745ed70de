"""What a kernel computes with: one paged weight of one task, and the gate that is asked before its pages are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from weightpager.page_dtype import ENCODINGS, Encoding


class PageGate(Protocol):
    """What is asked before pages of the arena are read, and told when they have been read."""

    def enter(self, reader: object, layer: int) -> None:
        """Wait until the pages of model layer ``layer`` may be read; they stay until ``reader`` leaves.

        Raises:
            TaskNotActiveError: the task isn't active, so its pages may be absent.
            SwitchFailedError: one of the pages couldn't be loaded.
        """

    def note_read(self) -> None:
        """What reads the pages has been launched."""

    def leave(self, reader: object, /) -> None:
        """The reader isn't inside any more, if it was: called in the ``finally`` of the ``try`` that it enters in."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockedWeight:
    """One paged weight ``[out_features, in_features]`` of one task, over arrays or tensors.

    The weight is cut into blocks of ``block_rows x block_cols``, zero-padded at the edges. How they lie in pages is
    described in `weightpager.page_dtype`.

    Everything but the arena's bytes and the page table's entries is checked once, and must not change afterwards. Those
    two change with every load; kernels look at an entry each time they use it.

    Attributes:
        arena: uint8 [slots, page_bytes].
        page_table: int32 [pages], page index -> slot, -1 where absent; updated in place, at a fixed address.
        crow_indices: int32 [grid_rows + 1], where each row's blocks start in the two that follow.
        col_indices: int32 [kept], ascending within a row.
        locations: int32 [kept], page index * blocks_per_page + place in page.
        block_rows: output features of a block, a power of two from 8 to 256.
        block_cols: input features of a block, a power of two from 8 to 256.
        dtype: the pages' dtype, a name in `ENCODINGS`.

    Raises:
        ValueError: something is not as described; the text says what.
    """

    arena: Any
    page_table: Any
    crow_indices: Any
    col_indices: Any
    locations: Any
    out_features: int
    in_features: int
    block_rows: int
    block_cols: int
    dtype: str

    def __reduce_ex__(self, _: Any) -> Any:
        raise TypeError(
            "paged weights live in the arena of an engine: a task's module can be neither copied nor pickled; "
            "'weightpager export' writes an ordinary one"
        )

    @property
    def encoding(self) -> Encoding:
        return ENCODINGS[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Bytes in a block, without its scales."""
        return self.encoding.number_bytes(self.block_rows, self.block_cols)

    @property
    def scale_bytes(self) -> int:
        return self.encoding.scale_bytes(self.block_rows)

    @property
    def blocks_per_page(self) -> int:
        """Blocks in a page. What is left of the page's bytes is not theirs."""
        return int(self.arena.shape[1]) // (self.block_bytes + self.scale_bytes)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks in the whole weight."""
        return -(-self.out_features // self.block_rows), -(-self.in_features // self.block_cols)

    @property
    def kept(self) -> int:
        return int(self.col_indices.shape[0])

    def check_sizes(self) -> None:
        if self.dtype not in ENCODINGS:
            *others, last = ENCODINGS
            raise ValueError(f"dtype: expected {', '.join(others)} or {last}, got {self.dtype}")
        for name in ("out_features", "in_features"):
            size = getattr(self, name)
            if not 1 <= size < 2**31:
                raise ValueError(f"{name}: expected 1 to {2**31 - 1}, got {size}")
        for name in ("block_rows", "block_cols"):
            size = getattr(self, name)
            if not 8 <= size <= 256 or size & (size - 1):
                raise ValueError(f"{name}: expected a power of two from 8 to 256, got {size}")


Indices = npt.NDArray[np.int32]


class PageNotResidentError(RuntimeError):
    """A kernel met a page that isn't in the arena. Nothing was computed."""

    def __init__(self, page: int) -> None:
        super().__init__(f"page {page} is not in the arena: expected every page of a weight to be loaded before use")
        self.page = page


@dataclass(frozen=True, slots=True, eq=False)
class PagedWeight(BlockedWeight):
    """A paged weight as a kernel on the host sees it: arrays only.

    Attributes:
        native: what the native kernels made of all this, at their first call.
    """

    native: list[Any] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self.check_sizes()
        _check_array("arena", self.arena, np.uint8, 2)
        for name in ("page_table", "crow_indices", "col_indices", "locations"):
            _check_array(name, getattr(self, name), np.int32, 1)
        check_tables(self, len(self.page_table), self.crow_indices, self.col_indices, self.locations)


def check_tables(of: BlockedWeight, pages: int, crow: Indices, columns: Indices, locations: Indices) -> None:
    """Raise a `ValueError` unless a block table, on the host, fits the weight's sizes, its arena and so many pages."""
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


def whole_weight(
    pages: npt.NDArray[np.uint8], rows: int, columns: int, block: tuple[int, int], dtype: str
) -> PagedWeight:
    """The weight ``[rows, columns]`` of which a page is a row of blocks, in the blocks' order.

    Pages are uint8 [rows of blocks, bytes of such a row], referred to and not copied. The dtype is one whose rows have
    scales. A `ValueError` says what isn't as described.
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

"""What a kernel computes with: one paged weight of one task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weightpager.page_dtype import ENCODINGS, Encoding


class PageNotResidentError(RuntimeError):
    """A kernel met a page that isn't in the arena; nothing was computed."""

    def __init__(self, page: int) -> None:
        super().__init__(f"page {page} is not in the arena: expected every page of a weight to be loaded before use")
        self.page = page


@dataclass(frozen=True, slots=True, eq=False)
class PagedWeight:
    """One paged weight ``[out_features, in_features]`` of one task, as a kernel sees it; tensors only.

    The weight is cut into blocks of ``block_rows x block_cols``, zero-padded at the edges. How they lie in pages is
    described in `weightpager.page_dtype`.

    All tensors are on one device. Everything but the arena's bytes and the page table's entries is checked here, once,
    and must not change afterwards. Those two change with every load; kernels look at an entry each time they use it.

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

    arena: Tensor
    page_table: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    locations: Tensor
    out_features: int
    in_features: int
    block_rows: int
    block_cols: int
    dtype: str
    native: list[Any] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_tensors()
        self._check_rows()
        self._check_columns()
        self._check_locations()

    def __reduce_ex__(self, _: Any) -> Any:
        """Refuse copies and pickles.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "paged weights live in the arena of an engine: a task's module can be neither copied nor pickled; "
            "'weightpager export' writes an ordinary one"
        )

    @property
    def encoding(self) -> Encoding:
        """How its blocks are stored."""
        return ENCODINGS[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Bytes in a block, without its scales."""
        return self.encoding.number_bytes(self.block_rows, self.block_cols)

    @property
    def scale_bytes(self) -> int:
        """Bytes of a block's scales."""
        return self.encoding.scale_bytes(self.block_rows)

    @property
    def blocks_per_page(self) -> int:
        """Blocks in a page; what is left of the page's bytes is not theirs."""
        return int(self.arena.shape[1]) // (self.block_bytes + self.scale_bytes)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks in the whole weight."""
        return -(-self.out_features // self.block_rows), -(-self.in_features // self.block_cols)

    @property
    def kept(self) -> int:
        """Blocks that the task keeps."""
        return int(self.col_indices.shape[0])

    def _check_sizes(self) -> None:
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

    def _check_tensors(self) -> None:
        grid_rows = self.grid[0]
        device = self.arena.device
        _check_tensor("arena", self.arena, torch.uint8, 2, device)
        for name in ("page_table", "crow_indices", "col_indices", "locations"):
            _check_tensor(name, getattr(self, name), torch.int32, 1, device)
        least = self.block_bytes + self.scale_bytes
        if self.arena.shape[1] < least:
            raise ValueError(f"arena: expected pages of at least {least} bytes, got {self.arena.shape[1]}")
        if self.crow_indices.shape[0] != grid_rows + 1:
            raise ValueError(f"crow_indices: expected {grid_rows + 1} entries, got {self.crow_indices.shape[0]}")
        if self.locations.shape != self.col_indices.shape:
            raise ValueError(f"locations: expected {self.kept} entries, got {self.locations.shape[0]}")

    def _check_rows(self) -> None:
        first, last = int(self.crow_indices[0]), int(self.crow_indices[-1])
        if (first, last) != (0, self.kept):
            raise ValueError(f"crow_indices: expected them to go from 0 to {self.kept}, got {first} to {last}")
        if bool((self.crow_indices[1:] < self.crow_indices[:-1]).any()):
            raise ValueError("crow_indices: expected ascending entries, got a descent")

    def _check_columns(self) -> None:
        grid_rows, grid_cols = self.grid
        _check_range("col_indices", self.col_indices, grid_cols)
        rows = torch.arange(grid_rows, device=self.arena.device).repeat_interleave(
            self.crow_indices.diff().long()
        )  # [kept]
        place = rows * grid_cols + self.col_indices
        if bool((place.diff() <= 0).any()):
            raise ValueError("col_indices: expected strictly ascending entries in each row, got some that are not")

    def _check_locations(self) -> None:
        _check_range("locations", self.locations, int(self.page_table.shape[0]) * self.blocks_per_page)


def _check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, dimensions: int, device: torch.device) -> None:
    if tensor.dtype != dtype or tensor.dim() != dimensions:
        raise ValueError(f"{name}: expected {dimensions}-d {dtype}, got {tensor.dim()}-d {tensor.dtype}")
    if tensor.device != device or tensor.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor on {device}, got {tensor.layout} on {tensor.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")


def _check_range(name: str, tensor: Tensor, end: int) -> None:
    if tensor.numel() == 0:
        return
    low, high = (int(bound) for bound in tensor.aminmax())
    if low < 0 or high >= end:
        raise ValueError(f"{name}: expected entries from 0 to {end - 1}, got {low} to {high}")

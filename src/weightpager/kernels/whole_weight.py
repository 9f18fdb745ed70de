"""A weight all of whose blocks are there: multiplied by as any other, and its rows looked up as an embedding's are."""

from __future__ import annotations

import torch
from torch import Tensor

from weightpager.kernels.paged_weight import PagedWeight
from weightpager.kernels.reference import numbers

try:
    import weightpager.kernels._native as _native
except ImportError:  # `dispatch` warns of it
    _HAS_NATIVE = False
else:
    _HAS_NATIVE = True


def whole_weight(pages: Tensor, rows: int, columns: int, block: tuple[int, int], dtype: str) -> PagedWeight:
    """The weight ``[rows, columns]`` of which a page is a row of blocks, in the blocks' order.

    Args:
        pages: uint8 [rows of blocks, bytes of such a row], on any device; referred to, not copied.
        rows: of the weight.
        columns: of the weight.
        block: rows and columns of a block.
        dtype: of the blocks, one whose rows have scales.

    Raises:
        ValueError: something is not as described.
    """
    grid_rows, grid_cols = -(-rows // block[0]), -(-columns // block[1])
    device = pages.device

    def count(end: int, step: int = 1) -> Tensor:
        return torch.arange(0, end, step, dtype=torch.int32, device=device)

    weight = PagedWeight(
        arena=pages,
        page_table=count(grid_rows),
        crow_indices=count(grid_rows * grid_cols + 1, grid_cols),
        col_indices=count(grid_cols).repeat(grid_rows),
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


def look_up(weight: PagedWeight, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows ``[..., in_features]`` of a `whole_weight`; exact in float32, rounded to nearest in bfloat16.

    Args:
        weight: the weight.
        ids: [...], int64 or int32, on the weight's device.
        dtype: float32 or bfloat16.

    Raises:
        TypeError: ids are of another dtype.
        IndexError: a row isn't in the weight; on a GPU its assertion fails instead, as that of `torch.nn.Embedding`.
    """
    if ids.dtype not in (torch.int64, torch.int32):  # as torch does
        raise TypeError(f"expected ids to be int64 or int32, got {ids.dtype}")
    flat = ids.detach().reshape(-1).to(torch.int64)
    if weight.arena.is_cpu and flat.numel():
        low, high = (int(bound) for bound in flat.aminmax())
        if low < 0 or high >= weight.out_features:
            raise IndexError(f"expected ids from 0 to {weight.out_features - 1}, got {low} to {high}")
    if not weight.arena.is_cpu or not _HAS_NATIVE:
        return reference(weight, flat, dtype).view(*ids.shape, weight.in_features)
    out = torch.empty((*ids.shape, weight.in_features), dtype=dtype)
    _native.look_up_rows(
        weight.arena.data_ptr(),
        weight.grid[1],
        weight.block_rows,
        weight.block_cols,
        weight.dtype == "int4",
        weight.in_features,
        flat.data_ptr(),
        flat.numel(),
        out.data_ptr(),
        dtype == torch.bfloat16,
    )
    return out


def reference(weight: PagedWeight, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """What `look_up` must do with ids, int64 [n], in plain torch, on any device."""
    blocks, height, step = weight.grid[1], weight.block_rows, weight.encoding.neighbours
    outside = (ids < 0) | (ids >= weight.out_features)
    ids = ids.masked_fill(outside, weight.grid[0] * height)  # which no page has: an index that is refused
    page, row = ids // height, ids % height
    used, trailer = blocks * weight.block_bytes, blocks * weight.scale_bytes
    steps = weight.arena[:, :used].view(-1, blocks, weight.block_cols // step, height, step * weight.encoding.bits // 8)
    raw = steps[page, :, :, row].reshape(len(ids), used // height)
    scales = weight.arena[:, used : used + trailer].view(-1, blocks, height, 2)[page, :, row]  # [n, blocks, 2]
    values = numbers(raw, weight.dtype).view(len(ids), blocks, weight.block_cols).float()
    values = values * scales.contiguous().view(torch.bfloat16).float()
    return values.view(len(ids), blocks * weight.block_cols)[:, : weight.in_features].to(dtype)

"""Rows of tables as embeddings look them up: of tables in blocks, and of rows as they are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from weightpager.kernels import choice
from weightpager.kernels.choice import NATIVE
from weightpager.kernels.paged_weight import PagedWeight
from weightpager.kernels.torch.device_weight import Weight, tensors
from weightpager.kernels.torch.reference import numbers

if NATIVE:
    from weightpager.kernels import _native


def look_up(weight: Weight, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows ``[..., in_features]`` of a whole weight: exact in float32, rounded to nearest in bfloat16.

    Ids are int64 or int32, on the weight's device.

    Raises:
        TypeError: ids are of another dtype.
        IndexError: a row isn't in the weight; on a GPU its assertion fails instead, as that of `torch.nn.Embedding`.
    """
    if ids.dtype not in (torch.int64, torch.int32):  # as torch does
        raise TypeError(f"expected ids to be int64 or int32, got {ids.dtype}")
    on_host = isinstance(weight, PagedWeight)
    flat = ids.detach().reshape(-1).to(torch.int64).contiguous()
    if on_host and flat.numel():
        low, high = (int(bound) for bound in flat.aminmax())
        if low < 0 or high >= weight.out_features:
            raise IndexError(f"expected ids from 0 to {weight.out_features - 1}, got {low} to {high}")
    if not isinstance(weight, PagedWeight) or weight.dtype not in choice.READS:
        return reference(weight, flat, dtype).view(*ids.shape, weight.in_features)
    out = torch.empty((*ids.shape, weight.in_features), dtype=dtype, device="cpu")
    _native.look_up_rows(
        weight.arena.ctypes.data,
        weight.grid[1],
        weight.block_rows,
        weight.block_cols,
        weight.dtype,
        weight.in_features,
        flat.data_ptr(),
        flat.numel(),
        out.data_ptr(),
        dtype == torch.bfloat16,
    )
    return out


def reference(weight: Weight, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """What `look_up` must do with ids, int64 [n], in plain torch, on any device."""
    blocks, height, step = weight.grid[1], weight.block_rows, weight.encoding.neighbours
    arena = tensors(weight)[0]
    outside = (ids < 0) | (ids >= weight.out_features)
    ids = ids.masked_fill(outside, weight.grid[0] * height)  # which no page has: an index that is refused
    page, row = ids // height, ids % height
    used, trailer = blocks * weight.block_bytes, blocks * weight.scale_bytes
    steps = arena[:, :used].view(-1, blocks, weight.block_cols // step, height, weight.encoding.word_bytes)
    raw = steps[page, :, :, row].reshape(len(ids), used // height)
    scales = arena[:, used : used + trailer].view(-1, blocks, height, 2)[page, :, row]  # [n, blocks, 2]
    values = numbers(raw, weight).view(len(ids), blocks, weight.block_cols).float()
    values = values * scales.contiguous().view(torch.bfloat16).float()
    return values.view(len(ids), blocks * weight.block_cols)[:, : weight.in_features].to(dtype)


def widened(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The values [..., columns] of stored rows, uint8 [..., columns + 2], on any device."""
    numbers = rows[..., :-2].view(torch.int8).float()
    scales = rows[..., -2:].clone(memory_format=torch.contiguous_format)  # of one row too: it may begin anywhere
    scales = scales.view(torch.bfloat16).float()
    return (numbers * scales).to(dtype)

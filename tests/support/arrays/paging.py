"""Build the `PagedWeight` that a compiler would make of a dense weight and a keep mask, shuffled on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from weightpager.kernels import PagedWeight
from weightpager.page_dtype import ENCODINGS, Encoding

PAGE_BLOCKS = 3
"""No power of two, so that a wrong page or place doesn't go unseen."""


def cut(dense: Tensor, block_rows: int, block_cols: int) -> Tensor:
    """Cut [O, I] into [grid_rows, grid_cols, block_rows, block_cols], zero-padded at the edges."""
    grid_rows, grid_cols = -(-dense.shape[0] // block_rows), -(-dense.shape[1] // block_cols)
    padded = torch.zeros(grid_rows * block_rows, grid_cols * block_cols, dtype=dense.dtype)
    padded[: dense.shape[0], : dense.shape[1]] = dense
    return padded.view(grid_rows, block_rows, grid_cols, block_cols).transpose(1, 2)


def masked(dense: Tensor, mask: Tensor, block_rows: int, block_cols: int) -> Tensor:
    """The dense weight with the blocks that ``mask`` [grid_rows, grid_cols] drops set to zero."""
    keep = mask.repeat_interleave(block_rows, 0).repeat_interleave(block_cols, 1)
    return dense * keep[: dense.shape[0], : dense.shape[1]]


def numbers(values: Tensor, dtype: str) -> Tensor:
    """What `page` makes a weight of that dtype of: whole numbers where rows have scales, else values in the dtype."""
    encoding = ENCODINGS[dtype]
    if not encoding.scaled:
        return values.to(getattr(torch, dtype))
    return (values * encoding.levels / 6).round().clamp(encoding.least, encoding.largest).to(torch.int8)


def page(
    dense: Tensor, mask: Tensor, block_rows: int, block_cols: int, seed: int = 0, trailer: int = 0, dtype: str = ""
) -> PagedWeight:
    """Page the kept blocks of ``dense`` [O, I]; each page ends with ``trailer`` bytes that belong to no block.

    The pages' dtype is that of ``dense`` where none is given; dtypes of fewer bits take their whole numbers in int8.
    Whole numbers get random scales; `dense_weight` multiplies them out. Blocks are spread over more places than
    needed, pages over more slots than needed, and whatever isn't a kept block is filled with bytes that would spoil
    any result.
    """
    random = torch.Generator().manual_seed(seed)
    dtype = dtype or str(dense.dtype).removeprefix("torch.")
    encoding = ENCODINGS[dtype]
    step = encoding.neighbours
    blocks = cut(dense, block_rows, block_cols)[mask]  # [kept, block_rows, block_cols]
    steps = blocks.view(-1, block_rows, block_cols // step, step).transpose(1, 2).contiguous()
    raw = _words(steps, encoding) if encoding.first_bits else steps.view(torch.uint8)
    raw = raw.reshape(len(blocks), block_rows * block_cols * encoding.bits // 8)

    pages = len(blocks) // PAGE_BLOCKS + 2
    slots = pages + 2
    locations = torch.randperm(pages * PAGE_BLOCKS, generator=random)[: len(blocks)]
    page_table = torch.randperm(slots, generator=random)[:pages]
    places = torch.full((slots, PAGE_BLOCKS, raw.shape[1]), 0xFF, dtype=torch.uint8)  # 0xFFFF...: NaN
    places[page_table[locations // PAGE_BLOCKS], locations % PAGE_BLOCKS] = raw
    scales = torch.empty(slots, 0, dtype=torch.uint8)
    if dense.dtype == torch.int8:
        drawn = torch.rand(slots, PAGE_BLOCKS * block_rows, generator=random) + 0.01
        scales = drawn.bfloat16().view(torch.uint8)
    arena = torch.nn.functional.pad(torch.cat([places.flatten(1), scales], 1), (0, trailer), value=0xFF)

    return PagedWeight(
        arena=arena.numpy(),
        page_table=page_table.int().numpy(),
        crow_indices=torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int().numpy(),
        col_indices=mask.nonzero()[:, 1].int().numpy(),
        locations=locations.int().numpy(),
        out_features=dense.shape[0],
        in_features=dense.shape[1],
        block_rows=block_rows,
        block_cols=block_cols,
        dtype=dtype,
    )


def _words(whole: Tensor, encoding: Encoding) -> Tensor:
    """Whole numbers [..., neighbours], the least of them as 0, as bytes [..., bytes of a word]."""
    words = ((whole.long() - encoding.least) << torch.tensor(encoding.first_bits)).sum(-1)
    return words[..., None].contiguous().view(torch.uint8)[..., : encoding.word_bytes]

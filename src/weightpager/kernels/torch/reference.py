"""The paged linear layer in plain torch, through a dense weight: slow, and what decides what is right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from weightpager.kernels.paged_weight import PageNotResidentError
from weightpager.kernels.torch.device_weight import Weight, device_of, tensors

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu, "gelu_tanh": partial(gelu, approximate="tanh")}
"""What a gated layer can do to its gate."""


def dense_weight(weight: Weight) -> Tensor:
    """The weight as ``[out_features, in_features]``, zero where a block is dropped. Float32 where blocks are scaled.

    Raises:
        PageNotResidentError: a block's page is not in the arena.
    """
    grid_rows, grid_cols = weight.grid
    _, _, crow, columns, _ = tensors(weight)
    rows = torch.arange(grid_rows, device=device_of(weight))
    rows = rows.repeat_interleave(crow.diff().long())  # [kept]
    blocks = _blocks(weight)
    dense = blocks.new_zeros(grid_rows, grid_cols, weight.block_rows, weight.block_cols)
    dense[rows, columns.long()] = blocks
    padded = dense.transpose(1, 2).reshape(grid_rows * weight.block_rows, grid_cols * weight.block_cols)
    return padded[: weight.out_features, : weight.in_features]


@torch.no_grad()
def paged_linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """``x @ W.T + bias`` with `dense_weight`, computed in float32.

    Takes and raises what `weightpager.kernels.torch.paged_linear` does.
    """
    y = x.float() @ dense_weight(weight).float().T
    if bias is not None:
        y += bias.float()
    return y.to(x.dtype)


@torch.no_grad()
def paged_gated(
    x: Tensor,
    gate: Weight,
    weight: Weight,
    activation: str,
    biases: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """``activation(x @ gate.T + biases[0]) * (x @ W.T + biases[1])``, computed in float32."""
    gated, other = (paged_linear(x.float(), of, bias) for of, bias in zip((gate, weight), biases, strict=True))
    return (ACTIVATIONS[activation](gated) * other).to(x.dtype)


def _blocks(weight: Weight) -> Tensor:
    """The kept blocks, [kept, block_rows, block_cols]."""
    per_page, step = weight.blocks_per_page, weight.encoding.neighbours
    arena, page_table, _, _, locations = tensors(weight)
    pages, places = locations.long() // per_page, locations.long() % per_page
    slots = page_table[pages].long()
    absent = (slots < 0) | (slots >= arena.shape[0])
    if bool(absent.any()):
        raise PageNotResidentError(int(pages[absent][0]))
    used = per_page * weight.block_bytes
    raw = arena[:, :used].view(-1, per_page, weight.block_bytes)[slots, places]  # [kept, block_bytes], a copy
    steps = numbers(raw, weight).view(-1, weight.block_cols // step, weight.block_rows, step)
    blocks = steps.transpose(1, 2).reshape(-1, weight.block_rows, weight.block_cols)
    if not weight.encoding.scaled:
        return blocks
    trailer = arena[:, used : used + per_page * weight.scale_bytes]
    scales = trailer.view(-1, per_page, weight.scale_bytes)[slots, places].view(torch.bfloat16)  # [kept, block_rows]
    return blocks.float() * scales.float()[:, :, None]


def numbers(raw: Tensor, weight: Weight) -> Tensor:
    """What lies in blocks of a weight, uint8 [kept, block_bytes], in the order in which it lies there."""
    encoding = weight.encoding
    if not encoding.first_bits:
        return raw.view(getattr(torch, weight.dtype))
    words = raw.view(len(raw), raw.shape[1] // encoding.word_bytes, encoding.word_bytes)
    return torch.stack(encoding.unpacked(words), -1).to(torch.int8) + encoding.least

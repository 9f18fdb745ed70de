"""Products with the blocks that a task keeps of a weight which is still learnt: forward and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightpager.blocks import BlockGrid, KeepMask
from weightpager.kernels.choice import NATIVE
from weightpager.kernels.paged_weight import Indices, PagedWeight
from weightpager.kernels.torch.device_weight import check_memory
from weightpager.kernels.torch.dispatch import paged_linear

if NATIVE:
    from weightpager.kernels import _native

_BYTES = 2  # of a weight in bfloat16


@dataclass(frozen=True)
class RowRounding:
    """How rows of blocks are rounded before they are multiplied: each to whole numbers times a scale of its own.

    A row's scale is its largest weight divided by one of the divisors, float32 [grid rows, block rows, grid cols].
    """

    divisors: Tensor
    least: int
    largest: int


_Table = tuple[Indices, Indices, Indices]  # crow_indices, col_indices and locations, as `PagedWeight` has them


def _table(kept: KeepMask, numbers: Indices) -> _Table:
    crow = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int32)
    return crow, np.nonzero(kept)[1].astype(np.int32), numbers[kept]


def products() -> tuple[str, ...]:
    """The instruction sets that blocks can be learnt with here, best first; none without the native module."""
    return tuple(_native.products()) if NATIVE else ()


class LearntBlocks:
    """Some of a weight's blocks.

    Where they are is worked out once. Their values are packed for each product, since they change with each step.
    """

    def __init__(self, kept: KeepMask, grid: BlockGrid, with_products: int = 0) -> None:
        """State which, [grid rows, grid cols], and by which of `products` they are learnt."""
        if kept.shape != (grid.rows, grid.cols):
            raise ValueError(f"kept: expected a mask of {(grid.rows, grid.cols)} blocks, got {kept.shape}")
        self._shape, self._block = (grid.out_features, grid.in_features), grid.block
        self._products = with_products
        self._count = int(kept.sum())
        numbers = np.zeros(kept.shape, np.int32)
        numbers[kept] = np.arange(self._count)
        self._table, self._turned_table = _table(kept, numbers), _table(kept.T, numbers.T)
        crow, columns, _ = (indices.ctypes.data for indices in self._table)
        self._native = _native.KeptBlocks(crow, columns, *self._shape, grid.block.rows, grid.block.cols)

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, rounding: RowRounding | None = None
    ) -> Tensor:
        """``x @ W.T + bias`` with the other blocks of W zero. Differentiable in x, W and bias.

        W is rounded to bfloat16, after the rounding of its blocks' rows if any, and products are summed up in float32.
        Gradients pass as if nothing were rounded. A `ValueError` says which operand isn't as described.

        Args:
            x: [..., in_features], bfloat16 or float32, as the result; gradients of both are found in the same.
            weight: float32 [out_features, in_features], contiguous.
            bias: [out_features], float32 or bfloat16.
            rounding: of the rows of W's blocks.
        """
        y: Tensor = _Linear.apply(x, weight, bias, self.packed(weight, rounding), self)  # type: ignore[no-untyped-call]
        return y

    def packed(self, weight: Tensor, rounding: RowRounding | None) -> tuple[PagedWeight, PagedWeight]:
        """W, contiguous float32 of this shape, as kernels multiply by it, and its transpose."""
        if weight.dtype != torch.float32 or weight.shape != self._shape or not weight.is_contiguous():
            wanted = f"contiguous float32 {list(self._shape)}"
            raise ValueError(f"weight: expected {wanted}, got {weight.dtype} {list(weight.shape)}")
        check_memory(weight)
        size = max(self._count, 1) * self._block.rows * self._block.cols * _BYTES
        arena, turned = np.empty((1, size), np.uint8), np.empty((1, size), np.uint8)
        divisors = None if rounding is None else rounding.divisors.contiguous()
        self._native.pack(
            self._products,
            weight.data_ptr(),
            0 if divisors is None else divisors.data_ptr(),
            0 if rounding is None else rounding.least,
            0 if rounding is None else rounding.largest,
            arena.ctypes.data,
            turned.ctypes.data,
            torch.get_num_threads(),
        )
        block = self._block
        return (
            _paged(arena, self._table, self._shape, (block.rows, block.cols)),
            _paged(turned, self._turned_table, self._shape[::-1], (block.cols, block.rows)),
        )

    def gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """``dy.T @ x`` in the kept blocks, zero elsewhere: float32 [out_features, in_features]."""
        x, dy = x.contiguous(), dy.contiguous()
        gradient = torch.zeros(self._shape, device="cpu")
        tokens = x.numel() // self._shape[1]
        self._native.add_gradient(
            self._products,
            x.data_ptr(),
            dy.data_ptr(),
            x.dtype == torch.bfloat16,
            tokens,
            gradient.data_ptr(),
            torch.get_num_threads(),
        )
        return gradient


class FrozenBlocks:
    """Some of a weight's blocks whose values stay: packed once, and without a gradient of their own."""

    def __init__(self, blocks: LearntBlocks, weight: Tensor) -> None:
        """State which, and a contiguous float32 weight that has their values. They are rounded to bfloat16."""
        self._packed = blocks.packed(weight, None)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """As `LearntBlocks.linear`. Differentiable in x and bias."""
        y: Tensor = _Linear.apply(x, None, bias, self._packed, None)  # type: ignore[no-untyped-call]
        return y


class _Linear(torch.autograd.Function):
    """``x @ W.T + bias`` by W and its transpose as they are packed; W has a gradient if it is learnt by some blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,  # noqa: ARG004 - for its gradient
        bias: Tensor | None,
        packed: tuple[PagedWeight, PagedWeight],
        of: LearntBlocks | None,
    ) -> Tensor:
        forward, ctx.turned = packed
        if of is not None:
            ctx.save_for_backward(x)
        ctx.of, ctx.bias_dtype = of, None if bias is None else bias.dtype
        return paged_linear(x, forward, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        return (
            paged_linear(dy, ctx.turned) if of_x else None,
            ctx.of.gradient(*ctx.saved_tensors, dy) if of_weight else None,
            dy.reshape(-1, dy.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_dtype) if of_bias else None,
            None,
            None,
        )


def _paged(arena: Any, table: _Table, shape: tuple[int, ...], block: tuple[int, int]) -> PagedWeight:
    return PagedWeight(arena, np.zeros(1, np.int32), *table, shape[0], shape[1], *block, "bfloat16")

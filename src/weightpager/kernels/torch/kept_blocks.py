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

    Attributes:
        divisors: float32 [grid rows, block rows, grid cols]; a row's scale is its largest weight divided by this.
        least, largest: number.
    """

    divisors: Tensor
    least: int
    largest: int


@dataclass(frozen=True)
class _Table:
    """Which blocks each row of a grid has, and where they lie, as `PagedWeight` has it."""

    crow: Indices
    columns: Indices
    locations: Indices

    @classmethod
    def of(cls, kept: KeepMask, numbers: Indices) -> _Table:
        crow = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int32)
        return cls(crow, np.nonzero(kept)[1].astype(np.int32), numbers[kept])


def products() -> tuple[str, ...]:
    """The instruction sets that blocks can be learnt with here, best first; none without the native module."""
    return tuple(_native.products()) if NATIVE else ()


class KeptBlocks:
    """Some of a weight's blocks.

    Where they are is worked out once. Their values are packed for each product, since they change with each step.
    """

    def __init__(self, kept: KeepMask, grid: BlockGrid, with_products: int = 0) -> None:
        """State which.

        Args:
            kept: [grid rows, grid cols].
            grid: of the weight.
            with_products: by which of `products` they are learnt.

        Raises:
            ValueError: the mask isn't of this grid.
        """
        if kept.shape != (grid.rows, grid.cols):
            raise ValueError(f"kept: expected a mask of {(grid.rows, grid.cols)} blocks, got {kept.shape}")
        self._shape, self._block = (grid.out_features, grid.in_features), grid.block
        self._products = with_products
        self._count = int(kept.sum())
        numbers = np.zeros(kept.shape, np.int32)
        numbers[kept] = np.arange(self._count)
        self._table, self._turned_table = _Table.of(kept, numbers), _Table.of(kept.T, numbers.T)
        self._native = _native.KeptBlocks(
            self._table.crow.ctypes.data,
            self._table.columns.ctypes.data,
            *self._shape,
            self._block.rows,
            self._block.cols,
        )

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, rounding: RowRounding | None = None
    ) -> Tensor:
        """``x @ W.T + bias`` with the other blocks of W zero. Differentiable in x, W and bias.

        W is rounded to bfloat16, and products are summed up in float32. Gradients pass as if nothing were rounded.

        Args:
            x: [..., in_features], bfloat16 or float32; its gradient and that of the result are found in the same.
            weight: float32 [out_features, in_features], contiguous.
            bias: [out_features], float32 or bfloat16.
            rounding: of the rows of W's blocks.

        Returns:
            [..., out_features], in the dtype of x.

        Raises:
            ValueError: an operand is not as described.
        """
        y: Tensor = _Linear.apply(x, weight, bias, self, rounding)  # type: ignore[no-untyped-call]
        return y

    def packed(self, weight: Tensor, rounding: RowRounding | None) -> tuple[PagedWeight, PagedWeight]:
        """W as kernels multiply by it, and its transpose.

        Raises:
            ValueError: the weight isn't contiguous float32 of this shape, or has no values.
        """
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
        """``dy.T @ x`` in the kept blocks, zero elsewhere.

        Args:
            x: [..., in_features], bfloat16 or float32.
            dy: [..., out_features], in the dtype of x.

        Returns:
            float32 [out_features, in_features].
        """
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

    def __init__(self, blocks: KeptBlocks, weight: Tensor) -> None:
        """State which, and a contiguous float32 weight that has their values. They are rounded to bfloat16."""
        self._forward, self._turned = blocks.packed(weight, None)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """As `KeptBlocks.linear`. Differentiable in x and bias."""
        y: Tensor = _FrozenLinear.apply(x, bias, self._forward, self._turned)  # type: ignore[no-untyped-call]
        return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, of: KeptBlocks, rounding: RowRounding | None
    ) -> Tensor:
        forward, ctx.turned = of.packed(weight, rounding)
        ctx.save_for_backward(x)
        ctx.of, ctx.bias_dtype = of, None if bias is None else bias.dtype
        return paged_linear(x, forward, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        return (
            paged_linear(dy, ctx.turned) if of_x else None,
            ctx.of.gradient(x, dy) if of_weight else None,
            _bias_gradient(dy, ctx.bias_dtype) if of_bias else None,
            None,
            None,
        )


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: PagedWeight, turned: PagedWeight) -> Tensor:
        ctx.turned, ctx.bias_dtype = turned, None if bias is None else bias.dtype
        return paged_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        of_x, of_bias = ctx.needs_input_grad[:2]
        return (
            paged_linear(dy, ctx.turned) if of_x else None,
            _bias_gradient(dy, ctx.bias_dtype) if of_bias else None,
            None,
            None,
        )


def _bias_gradient(dy: Tensor, dtype: torch.dtype) -> Tensor:
    return dy.reshape(-1, dy.shape[-1]).sum(0, dtype=torch.float32).to(dtype)


def _paged(arena: Any, table: _Table, shape: tuple[int, ...], block: tuple[int, int]) -> PagedWeight:
    return PagedWeight(
        arena=arena,
        page_table=np.zeros(1, np.int32),
        crow_indices=table.crow,
        col_indices=table.columns,
        locations=table.locations,
        out_features=shape[0],
        in_features=shape[1],
        block_rows=block[0],
        block_cols=block[1],
        dtype="bfloat16",
    )

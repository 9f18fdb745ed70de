"""Products with weights, and look-ups in tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from weightpager.graph.graph import Array
from weightpager.graph.reference.elements import ACTIVATIONS


def embedding(table: Array, ids: Array) -> Array:
    """A table's rows, by id."""
    if ids.size and (ids.min() < 0 or ids.max() >= len(table)):
        raise ValueError(f"expected ids from 0 to {len(table) - 1}, found {ids.min()} to {ids.max()}")
    return np.take(table, ids, 0)


def linear(x: Array, weight: Array, bias: Array | None, *, activation: str) -> Array:
    """``activation(x · weightᵀ + bias)``, weight [out, in]."""
    product = x @ weight.T
    return ACTIVATIONS[activation](product if bias is None else product + bias)


def gated_linear(x: Array, gate_weight: Array, up_weight: Array, *, activation: str) -> Array:
    """``activation(x · gate_weightᵀ) * (x · up_weightᵀ)``."""
    return np.asarray(ACTIVATIONS[activation](x @ gate_weight.T) * (x @ up_weight.T))


def matmul(x: Array, y: Array) -> Array:
    """The matrix product of the last two axes; the others broadcast."""
    return np.asarray(x @ y)


def conv2d(x: Array, weight: Array, bias: Array | None, *, stride: list[int], padding: list[int], groups: int) -> Array:
    """A convolution over height and width.

    Args:
        x: [B, C, H, W].
        weight: [O, C / groups, kernel height, kernel width].
        bias: [O].
        stride: of height and width.
        padding: zeros on both sides of height and width.
        groups: of channels, each with its own share of the outputs.
    """
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))[:, :, :: stride[0], :: stride[1]]
    batch, channels, height, width = windows.shape[:4]
    parts = windows.reshape(batch, groups, channels // groups, height, width, *weight.shape[2:])
    kernels = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    product = np.einsum("bgchwij,gocij->bgohw", parts, kernels, optimize=True)
    product = product.reshape(batch, len(weight), height, width)
    return np.asarray(product if bias is None else product + bias[:, None, None])


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "embedding": embedding,
    "linear": linear,
    "gated_linear": gated_linear,
    "matmul": matmul,
    "conv2d": conv2d,
}

"""Norms over the last axis, alone and with the sum before them; means, sums, softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from weightpager.graph.graph import Array


def layer_norm(x: Array, weight: Array | None, bias: Array | None, *, epsilon: float) -> Array:
    """``(x - mean) / sqrt(variance + epsilon) * weight + bias``."""
    centred = x - x.mean(-1, keepdims=True, dtype=np.float64)
    normed = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
    scaled: Array = normed.astype(np.float32)
    scaled = scaled if weight is None else scaled * weight
    return scaled if bias is None else scaled + bias


def rms_norm(x: Array, weight: Array | None, *, epsilon: float, offset: int) -> Array:
    """``x / sqrt(mean(x * x) + epsilon) * (weight + offset)``."""
    squares = np.square(x, dtype=np.float64).mean(-1, keepdims=True)
    scaled: Array = (x / np.sqrt(squares + epsilon)).astype(np.float32)
    return scaled if weight is None else scaled * (weight + np.float32(offset))


def add_layer_norm(
    x: Array, y: Array, weight: Array | None, bias: Array | None, *, epsilon: float
) -> tuple[Array, Array]:
    """``x + y``, and its `layer_norm`."""
    total = x + y
    return total, layer_norm(total, weight, bias, epsilon=epsilon)


def add_rms_norm(x: Array, y: Array, weight: Array | None, *, epsilon: float, offset: int) -> tuple[Array, Array]:
    """``x + y``, and its `rms_norm`."""
    total = x + y
    return total, rms_norm(total, weight, epsilon=epsilon, offset=offset)


def mean(x: Array, *, axes: list[int], keep: bool) -> Array:
    """The mean over axes, which stay with size 1 or go."""
    return np.asarray(x.mean(tuple(axes), keepdims=keep, dtype=np.float64), np.float32)


def total(x: Array, *, axes: list[int], keep: bool) -> Array:
    """The sum over axes, which stay with size 1 or go; of conditions, how many are true."""
    wide = np.float64 if x.dtype == np.float32 else np.int64
    return np.asarray(x.sum(tuple(axes), keepdims=keep, dtype=wide), x.dtype if wide is np.float64 else np.int64)


def softmax(x: Array, *, axis: int) -> Array:
    """``exp(x)`` as shares of their sum over an axis."""
    powers = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True))


def cumsum(x: Array, *, axis: int) -> Array:
    """Sums of an element and all before it; of conditions, numbers of true ones."""
    return np.asarray(x.cumsum(axis, dtype=x.dtype if x.dtype == np.float32 else np.int64))


def argmax(x: Array, *, axis: int) -> Array:
    """The index of the first greatest element along an axis, which goes."""
    return np.asarray(x.argmax(axis), np.int64)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "add_layer_norm": add_layer_norm,
    "add_rms_norm": add_rms_norm,
    "mean": mean,
    "sum": total,
    "softmax": softmax,
    "cumsum": cumsum,
    "argmax": argmax,
}

"""Operators that move elements and compute none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from weightpager.graph.graph import DTYPES, Array


def reshape(x: Array, *, shape: list[int]) -> Array:
    """The same elements in row-major order in another shape; −1 stands for what is left."""
    return x.reshape(shape)


def permute(x: Array, *, axes: list[int]) -> Array:
    """Axes in another order: axis i of the result is axis ``axes[i]`` of ``x``."""
    return np.transpose(x, axes)


def cut(x: Array, *, axis: int, start: int, end: int | None, step: int) -> Array:
    """Every ``step``-th element along an axis from ``start`` to before ``end``, as Python's slices count."""
    found: Array = x[(slice(None),) * axis + (slice(start, end, step),)]
    return found


def concat(*parts: Array, axis: int) -> Array:
    """Values one behind the other along an axis."""
    return np.concatenate(parts, axis)


def expand(x: Array, *, shape: list[int]) -> Array:
    """Axes of size 1 repeated, new ones in front; −1 keeps an axis as it is."""
    added = len(shape) - x.ndim
    return np.broadcast_to(x, [x.shape[at - added] if size == -1 else size for at, size in enumerate(shape)])


def arange(*, start: int, end: int, step: int) -> Array:
    """Whole numbers from ``start`` to before ``end``."""
    return np.arange(start, end, step, dtype=np.int64)


def full(*, shape: list[int], value: float, dtype: str) -> Array:
    """One number everywhere."""
    return np.full(shape, value, DTYPES[dtype])


def gather(x: Array, index: Array, *, axis: int) -> Array:
    """Along an axis the element that the index says; index has as many axes as ``x``, the others of its size or 1."""
    return np.take_along_axis(x, index, axis)


def take(x: Array, ids: Array, *, axis: int) -> Array:
    """Along an axis the slices that the ids say; the ids' axes come in its place."""
    return np.take(x, ids, axis)


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "reshape": reshape,
    "permute": permute,
    "slice": cut,
    "concat": concat,
    "expand": expand,
    "arange": arange,
    "full": full,
    "gather": gather,
    "take": take,
}

"""Rows of tables that are only looked up, widened to what the model computes in."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from weightpager.kernels.choice import NATIVE
from weightpager.page_dtype import ENCODINGS

if NATIVE:
    from weightpager.kernels import _native

Positions = npt.NDArray[np.int64]

Wide = npt.NDArray[Any]
"""float32, or bfloat16 as uint16."""

_WIDE = (np.dtype(np.float32), np.dtype(np.uint16))


class RowSource(Protocol):
    """A table ``[rows, columns]`` of which some rows are in memory, and others are read when they are wanted."""

    @property
    def rows(self) -> int:
        """How many rows the table has."""

    @property
    def columns(self) -> int:
        """How many numbers a row has."""

    def look_up(self, ids: Positions, out: Wide) -> None:
        """Write the rows ``ids`` [n] to ``out`` [n, columns], both contiguous. Raises `IndexError` of another row."""

    def all(self) -> npt.NDArray[np.float32]:
        """The whole table, float32 [rows, columns]."""


def widen_rows(stored: npt.NDArray[np.uint8], offsets: Positions, at: Positions, out: Wide) -> None:
    """Widen stored rows into rows of ``out``: exact in float32, rounded to nearest in bfloat16.

    Args:
        stored: uint8 [bytes], contiguous; a row is int8 [columns] and its scale, a bfloat16, at any offset.
        offsets: int64 [n], where each row begins.
        at: int64 [n], the row of ``out`` that it goes to.
        out: float32, or bfloat16 as uint16, [rows, columns], contiguous.

    Raises:
        ValueError: an argument isn't as described, or a row isn't inside of ``stored`` or ``out``.
    """
    _check(stored, offsets, at, out)
    if not NATIVE:
        reference(stored, offsets, at, out)
        return
    _native.widen_rows(
        stored.ctypes.data,
        offsets.ctypes.data,
        at.ctypes.data,
        len(offsets),
        out.shape[1],
        out.ctypes.data,
        is_bfloat16(out),
    )


def reference(stored: npt.NDArray[np.uint8], offsets: Positions, at: Positions, out: Wide) -> None:
    """What `widen_rows` must do."""
    columns, bfloat16 = out.shape[1], ENCODINGS["bfloat16"]
    rows = stored[offsets[:, None] + np.arange(columns + 2)]
    scales = np.ascontiguousarray(rows[:, columns:]).view(np.uint16)  # [n, 1]
    values = rows[:, :columns].view(np.int8).astype(np.float32) * bfloat16.widen(scales)
    out[at] = bfloat16.narrow(values) if is_bfloat16(out) else values


def is_bfloat16(out: Wide) -> bool:
    """Whether values are bfloat16, for which numpy has no dtype of its own."""
    return bool(out.dtype == np.uint16)


def check_wide(out: Wide, rows: int, columns: int) -> None:
    """Raise a `ValueError` unless ``out`` is contiguous float32 or bfloat16 of this shape."""
    if out.dtype not in _WIDE or not out.flags.c_contiguous or out.shape != (rows, columns):
        raise ValueError(f"expected contiguous float32 or bfloat16 [{rows}, {columns}] to write to")


def _check(stored: npt.NDArray[np.uint8], offsets: Positions, at: Positions, out: Wide) -> None:
    if stored.dtype != np.uint8 or stored.ndim != 1 or not stored.flags.c_contiguous:
        raise ValueError("expected stored rows as contiguous uint8 [bytes]")
    if out.ndim != 2:
        raise ValueError("expected contiguous float32 or bfloat16 [rows, columns] to write to")
    check_wide(out, *out.shape)
    for positions, end in ((offsets, len(stored) - out.shape[1] - 2), (at, len(out) - 1)):
        if positions.dtype != np.int64 or positions.shape != offsets.shape or not positions.flags.c_contiguous:
            raise ValueError("expected contiguous int64 [n] of offsets and of rows")
        if len(positions) and not 0 <= positions.min() <= positions.max() <= end:
            raise ValueError(f"expected offsets and rows from 0 to {end}, found others")

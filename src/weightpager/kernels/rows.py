"""Rows of tables that are only looked up, widened to what the model computes in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

try:
    import weightpager.kernels._native as _native
except ImportError:  # `dispatch` warns of it
    _HAS_NATIVE = False
else:
    _HAS_NATIVE = True

Positions = npt.NDArray[np.int64]


def widen_rows(stored: npt.NDArray[np.uint8], offsets: Positions, at: Positions, out: Tensor) -> None:
    """Widen stored rows into rows of ``out``; exact in float32, rounded to nearest in bfloat16.

    Args:
        stored: uint8 [bytes], contiguous; a row is int8 [columns] and its scale, a bfloat16, at any offset.
        offsets: int64 [n], where each row begins.
        at: int64 [n], the row of ``out`` that it goes to.
        out: float32 or bfloat16 [rows, columns], contiguous, on the host.

    Raises:
        ValueError: an argument isn't as described, or a row isn't inside of ``stored`` or ``out``.
    """
    _check(stored, offsets, at, out)
    if not _HAS_NATIVE:
        reference(stored, offsets, at, out)
        return
    _native.widen_rows(
        stored.ctypes.data,
        offsets.ctypes.data,
        at.ctypes.data,
        len(offsets),
        out.shape[1],
        out.data_ptr(),
        out.dtype == torch.bfloat16,
    )


def reference(stored: npt.NDArray[np.uint8], offsets: Positions, at: Positions, out: Tensor) -> None:
    """What `widen_rows` must do."""
    rows = stored[offsets[:, None] + np.arange(out.shape[1] + 2)]
    out[torch.from_numpy(at)] = widened(torch.from_numpy(rows), out.dtype)


def widened(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The values [..., columns] of stored rows, uint8 [..., columns + 2], on any device."""
    numbers = rows[..., :-2].view(torch.int8).float()
    scales = rows[..., -2:].clone(memory_format=torch.contiguous_format)  # of one row too: it may begin anywhere
    scales = scales.view(torch.bfloat16).float()
    return (numbers * scales).to(dtype)


def check_wide(out: Tensor, rows: int, columns: int) -> None:
    """See that so many rows can be widened to memory.

    Raises:
        ValueError: it isn't contiguous float32 or bfloat16 of that shape on the host.
    """
    right = out.dtype in (torch.float32, torch.bfloat16) and out.is_contiguous() and out.is_cpu
    if not right or out.shape != (rows, columns):
        raise ValueError(f"expected contiguous float32 or bfloat16 [{rows}, {columns}] on the host to write to")


def _check(stored: npt.NDArray[np.uint8], offsets: Positions, at: Positions, out: Tensor) -> None:
    if stored.dtype != np.uint8 or stored.ndim != 1 or not stored.flags.c_contiguous:
        raise ValueError("expected stored rows as contiguous uint8 [bytes]")
    if out.dtype not in (torch.float32, torch.bfloat16) or out.ndim != 2 or not out.is_contiguous() or not out.is_cpu:
        raise ValueError("expected contiguous float32 or bfloat16 [rows, columns] on the host to write to")
    for positions, end in ((offsets, len(stored) - out.shape[1] - 2), (at, len(out) - 1)):
        if positions.dtype != np.int64 or positions.shape != offsets.shape or not positions.flags.c_contiguous:
            raise ValueError("expected contiguous int64 [n] of offsets and of rows")
        if len(positions) and not 0 <= positions.min() <= positions.max() <= end:
            raise ValueError(f"expected offsets and rows from 0 to {end}, found others")

"""The native CPU kernels over arrays: what they can run on, and what they are given.

Importing this module fails with ImportError where the native module hasn't been built.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import weightpager.kernels._native as _native
from weightpager.kernels.paged_weight import PagedWeight, PageNotResidentError

Values = npt.NDArray[Any]
"""float32, or bfloat16 as uint16."""


def paged_linear(x: Values, weight: PagedWeight, bias: Values | None, isa: int, threads: int) -> Values:
    """``x @ W.T + bias``, accumulated in float32. The number of threads doesn't change the result.

    Values are contiguous and float32, or bfloat16 as uint16: x [..., in_features], bias [out_features]; the result
    [..., out_features] has the dtype of x. The kernel is number ``isa`` of `NATIVE`.

    Raises:
        ValueError: x or bias is not as described.
        PageNotResidentError: a block's page is not in the arena.
    """
    _check("x", x, (*x.shape[:-1], weight.in_features))
    if bias is not None:
        _check("bias", bias, (weight.out_features,))
    y = np.empty((*x.shape[:-1], weight.out_features), x.dtype)
    missing = native_weight(weight).linear(
        isa,
        x.ctypes.data,
        y.ctypes.data,
        x.dtype == np.uint16,
        x.size // weight.in_features,
        0 if bias is None else bias.ctypes.data,
        bias is not None and bias.dtype == np.uint16,
        threads,
    )
    if missing >= 0:
        raise PageNotResidentError(missing)
    return y


def _check(name: str, values: Values, shape: tuple[int, ...]) -> None:
    if values.dtype not in (np.float32, np.uint16) or values.shape != shape or not values.flags.c_contiguous:
        wanted = f"contiguous float32, or bfloat16 as uint16, {list(shape)}"
        raise ValueError(f"{name}: expected {wanted}, got {values.dtype} {list(values.shape)}")


def read_memory(array: npt.NDArray[Any], threads: int) -> None:
    """Read all bytes of a contiguous array and do nothing with them, as fast as this machine can."""
    _native.read_memory(array.ctypes.data, array.nbytes, threads)


def native_weight(weight: PagedWeight) -> _native.Weight:
    """The weight as the native module knows it, made at the first use: its arrays never move."""
    if not weight.native:
        weight.native.append(
            _native.Weight(
                arena=weight.arena.ctypes.data,
                page_table=weight.page_table.ctypes.data,
                crow_indices=weight.crow_indices.ctypes.data,
                col_indices=weight.col_indices.ctypes.data,
                locations=weight.locations.ctypes.data,
                slots=weight.arena.shape[0],
                page_bytes=weight.arena.shape[1],
                blocks_per_page=weight.blocks_per_page,
                out_features=weight.out_features,
                in_features=weight.in_features,
                block_rows=weight.block_rows,
                block_cols=weight.block_cols,
                dtype=weight.dtype,
            )
        )
    made: _native.Weight = weight.native[0]
    return made

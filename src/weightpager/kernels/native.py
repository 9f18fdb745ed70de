"""The native CPU kernels over arrays: what they can run on, and what they are given.

Importing this module fails with ImportError where the native module hasn't been built.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

import weightpager.kernels._native as _native
from weightpager.kernels.paged_weight import PagedWeight

READS = frozenset({"bfloat16", "float32", "int8", "int4"})
"""The pages' dtypes that these kernels read."""


def isas() -> tuple[str, ...]:
    """Instruction sets that this machine can run, best first."""
    return tuple(_native.isas())


def exact(isa: int) -> str:
    """The kernel that serves float32 where number ``isa`` of `isas` is chosen."""
    return _native.exact(isa)


def threading() -> str:
    """``"gomp"`` if work is spread over torch's OpenMP threads, ``"own"`` if over the native module's own."""
    return _native.threading()


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

"""What stands behind a parameter's name: an array, a weight in blocks, or a table whose rows come on demand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from weightpager.kernels import PagedWeight
from weightpager.page_dtype import ENCODINGS

Array: TypeAlias = npt.NDArray[Any]
"""float32, int64 or bool; uint16 holds bfloat16."""

BFLOAT16 = np.dtype(np.uint16)

_DTYPES = {
    np.dtype(np.float32): "float32",
    np.dtype(np.int64): "int64",
    np.dtype(np.bool_): "bool",
    BFLOAT16: "bfloat16",
}


@dataclass(frozen=True, eq=False)
class Blocks:
    """A weight in blocks.

    Attributes:
        weight: the weight as kernels take it.
        layer: the model layer whose pages it lies in; None if it is always in memory.
        table: all its blocks are there, a row of them a page, so that its rows can be looked up, too.
        low_rank: float32 ``(down [rank, in], up [out, rank])``: their product is added to the weight.
    """

    weight: PagedWeight
    layer: int | None = None
    table: bool = False
    low_rank: tuple[Array, Array] | None = None


class RowsOnDemand(Protocol):
    """A table ``[rows, columns]`` of which some rows are in memory, and others are read when they are wanted."""

    @property
    def rows(self) -> int:
        """How many rows the table has."""

    @property
    def columns(self) -> int:
        """How many numbers a row has."""

    def look_up(self, ids: npt.NDArray[np.int64], out: npt.NDArray[np.float32]) -> None:
        """Write the rows of ids [n], all of them in the table, to ``out`` [n, columns], both contiguous."""


ProgramParameter: TypeAlias = Array | Blocks | RowsOnDemand
"""A parameter, as a program takes it; `StoredParameter` is one as a bundle's file has it."""


def dtype_name(array: Array) -> str:
    """As the native module calls an array's dtype.

    Raises:
        ValueError: it takes none of that dtype.
    """
    name = _DTYPES.get(array.dtype)
    if name is None:
        raise ValueError(f"expected float32, int64, bool, or bfloat16 as uint16, got {array.dtype}")
    return name


def widened(array: Array) -> Array:
    """bfloat16 as float32; another array as it is."""
    return ENCODINGS["bfloat16"].widen(array) if array.dtype == BFLOAT16 else array

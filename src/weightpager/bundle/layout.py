"""How a block's weights lie in a page: ``interleaved``, ``[cols / p][rows][p]`` with ``p = 4 // itemsize``.

Element (r, c) of a block lies at ``((c // p) * rows + r) * p + c % p``: pairs of bfloat16 input features, or single
float32 ones, for all output features of the block side by side. That is what AVX-512 BF16, AMX and Arm BFDOT consume
directly and what AVX2 and NEON widen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.blocks import BlockShape

ITEM_BYTES = {"bfloat16": 2, "float32": 4}
"""Bytes of one weight, by the bundle's dtype."""

STORAGE: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype("<u2"), "float32": np.dtype("<f4")}
"""numpy has no bfloat16: its bits travel as uint16."""


def block_bytes(block: BlockShape, dtype: str) -> int:
    """Bytes of one block in a page."""
    return block.size * ITEM_BYTES[dtype]


def interleave(blocks: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``[n, rows, cols]`` row-major blocks to ``[n, rows * cols]`` as they lie in a page."""
    n, rows, cols = blocks.shape
    group = 4 // blocks.dtype.itemsize
    return np.ascontiguousarray(blocks.reshape(n, rows, cols // group, group).swapaxes(1, 2)).reshape(n, -1)


def deinterleave(flat: npt.NDArray[Any], block: BlockShape) -> npt.NDArray[Any]:
    """The inverse of `interleave`: ``[n, rows * cols]`` to ``[n, rows, cols]``."""
    group = 4 // flat.dtype.itemsize
    grouped = flat.reshape(len(flat), block.cols // group, block.rows, group)
    return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(len(flat), block.rows, block.cols)

"""In which dtypes a page's blocks are stored, and how they lie there: all that tells one dtype from another.

The layout is ``interleaved``, ``[cols / p][rows][p]``: element (r, c) of a block lies at
``((c // p) * rows + r) * p + c % p``, p neighbouring input features for all output features of the block side by side.
With p = 2 that is what AVX-512 BF16, AMX and Arm BFDOT consume directly and what AVX2 and NEON widen.

Where a dtype is scaled, a block has one bfloat16 scale for each of its rows: a weight is its number times that. In a
page the numbers of all blocks come first, then their scales, so that blocks stay aligned.

A new dtype takes a name in `PageDtype` and an entry in `ENCODINGS`; until a kernel reads it, the reference serves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from weightpager.blocks import BlockShape

PageDtype = Literal["bfloat16", "float32", "int8"]
"""Its name in manifests and task files, and torch's."""

_SCALE = np.dtype("<u2")  # numpy has no bfloat16: its bits travel as uint16


@dataclass(frozen=True)
class Encoding:
    """How the weights of one dtype are stored.

    Attributes:
        number: the stored type.
        neighbours: the p of the layout.
        narrow: float32 to stored numbers, rounded to nearest, ties to even.
        widen: stored numbers to float32.
        largest: number of a row's largest weight, where rows have scales; else 0.
    """

    number: np.dtype[Any]
    neighbours: int
    narrow: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]
    widen: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]
    largest: int = 0

    @property
    def scaled(self) -> bool:
        """Whether each row of a block has a scale."""
        return self.largest > 0

    def number_bytes(self, rows: int, cols: int) -> int:
        """Bytes of a block's numbers."""
        return rows * cols * self.number.itemsize

    def scale_bytes(self, rows: int) -> int:
        """Bytes of a block's scales."""
        return rows * _SCALE.itemsize if self.scaled else 0


def _rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return np.asarray(((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(_SCALE))


def _widened(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return np.asarray((bits.astype(np.uint32) << np.uint32(16)).view(np.float32))


def _float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return values.astype(np.dtype("<f4"), copy=False)


def _int8(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    return np.rint(values).astype(np.int8)


ENCODINGS: dict[str, Encoding] = {
    "bfloat16": Encoding(_SCALE, 2, _rounded, _widened),
    "float32": Encoding(np.dtype("<f4"), 1, _float32, _float32),
    "int8": Encoding(np.dtype("i1"), 2, _int8, _float32, largest=127),
}
"""Every `PageDtype`."""


def block_bytes(block: BlockShape, dtype: str) -> int:
    """Bytes that one block takes in a page, its scales included."""
    encoding = ENCODINGS[dtype]
    return encoding.number_bytes(block.rows, block.cols) + encoding.scale_bytes(block.rows)


def encode(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.uint8]:
    """Blocks ``[n, rows, cols]`` as bytes ``[n, block bytes]``: numbers as they lie in a page, then scales.

    A row's scale is the least bfloat16 that its largest number needs.
    """
    encoding = ENCODINGS[dtype]
    if not encoding.scaled:
        return _raw(_interleave(encoding.narrow(values), encoding.neighbours))
    scales = _rounded_up(np.abs(values).max(2) / np.float32(encoding.largest))  # [n, rows]
    steps = values / np.maximum(_widened(scales), np.finfo(np.float32).tiny)[:, :, None]
    numbers = encoding.narrow(steps.clip(-encoding.largest, encoding.largest))
    return np.concatenate([_raw(_interleave(numbers, encoding.neighbours)), _raw(scales)], 1)


def decode(blocks: npt.NDArray[np.uint8], block: BlockShape, dtype: str) -> npt.NDArray[np.float32]:
    """The values ``[n, rows, cols]`` of blocks ``[n, block bytes]``."""
    encoding = ENCODINGS[dtype]
    size = encoding.number_bytes(block.rows, block.cols)
    numbers = np.ascontiguousarray(blocks[:, :size]).view(encoding.number)
    values = encoding.widen(_deinterleave(numbers, block, encoding.neighbours))
    if not encoding.scaled:
        return values
    return values * _widened(np.ascontiguousarray(blocks[:, size:]).view(_SCALE))[:, :, None]


def page_content(blocks: npt.NDArray[np.uint8], block: BlockShape, dtype: str, page_bytes: int) -> bytes:
    """The page whose places hold these blocks, ``[places, block bytes]``; zeros after them."""
    size = ENCODINGS[dtype].number_bytes(block.rows, block.cols)
    return (blocks[:, :size].tobytes() + blocks[:, size:].tobytes()).ljust(page_bytes, b"\0")


def page_blocks(page: npt.NDArray[np.uint8], places: int, block: BlockShape, dtype: str) -> npt.NDArray[np.uint8]:
    """The inverse of `page_content`: what lies in a page's places, ``[places, block bytes]``."""
    size, whole = ENCODINGS[dtype].number_bytes(block.rows, block.cols), block_bytes(block, dtype)
    numbers, scales = page[: places * size], page[places * size : places * whole]
    return np.concatenate([numbers.reshape(places, -1), scales.reshape(places, whole - size)], 1)


def _raw(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).view(np.uint8)


def _rounded_up(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Of values that aren't negative."""
    return np.asarray(((values.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)).astype(_SCALE))


def _interleave(blocks: npt.NDArray[Any], group: int) -> npt.NDArray[Any]:
    n, rows, cols = blocks.shape
    return np.ascontiguousarray(blocks.reshape(n, rows, cols // group, group).swapaxes(1, 2)).reshape(n, rows * cols)


def _deinterleave(flat: npt.NDArray[Any], block: BlockShape, group: int) -> npt.NDArray[Any]:
    grouped = flat.reshape(len(flat), block.cols // group, block.rows, group)
    return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(len(flat), block.rows, block.cols)

"""How blocks lie in a page: ``interleaved``, ``[cols / p][rows][p]``, int8 ones with their scales at the page's end.

Element (r, c) of a block lies at ``((c // p) * rows + r) * p + c % p``, with p = 1 for float32 and p = 2 for bfloat16
and int8: pairs of input features for all output features of the block side by side. That is what AVX-512 BF16, AMX and
Arm BFDOT consume directly and what AVX2 and NEON widen.

An int8 block has one bfloat16 scale for each of its rows: a weight is its number times that. In a page the blocks come
first, then the scales of all of them, so that blocks stay aligned.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from weightpager.blocks import BlockShape

PageDtype = Literal["bfloat16", "float32", "int8"]

_STORAGE: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype("<u2"),  # numpy has no bfloat16: its bits travel as uint16
    "float32": np.dtype("<f4"),
    "int8": np.dtype("i1"),
}
_SCALE = _STORAGE["bfloat16"]
_LARGEST = 127


def block_bytes(block: BlockShape, dtype: str) -> int:
    """Bytes that one block takes in a page, its scales included."""
    return _number_bytes(block, dtype) + (block.rows * _SCALE.itemsize if dtype == "int8" else 0)


def encode(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.uint8]:
    """Blocks ``[n, rows, cols]`` as bytes ``[n, block bytes]``: numbers as they lie in a page, then scales.

    Rounds to nearest, ties to even. An int8 row's scale is the least bfloat16 that its largest number needs.
    """
    if dtype == "float32":
        return _raw(_interleave(values.astype(_STORAGE[dtype], copy=False), 1))
    if dtype == "bfloat16":
        return _raw(_interleave(_rounded(values), 2))
    scales = _rounded_up(np.abs(values).max(2) / np.float32(_LARGEST))  # [n, rows]
    steps = values / np.maximum(_widened(scales), np.finfo(np.float32).tiny)[:, :, None]
    numbers = np.rint(steps).clip(-_LARGEST, _LARGEST).astype(np.int8)
    return np.concatenate([_raw(_interleave(numbers, 2)), _raw(scales)], 1)


def decode(blocks: npt.NDArray[np.uint8], block: BlockShape, dtype: str) -> npt.NDArray[np.float32]:
    """The values ``[n, rows, cols]`` of blocks ``[n, block bytes]``."""
    size = _number_bytes(block, dtype)
    numbers = np.ascontiguousarray(blocks[:, :size]).view(_STORAGE[dtype])
    values = _deinterleave(numbers, block, 1 if dtype == "float32" else 2)
    if dtype == "bfloat16":
        return _widened(values)
    if dtype == "float32":
        return values.astype(np.float32, copy=False)
    scales = _widened(np.ascontiguousarray(blocks[:, size:]).view(_SCALE))
    return values.astype(np.float32) * scales[:, :, None]


def page_content(blocks: npt.NDArray[np.uint8], block: BlockShape, dtype: str, page_bytes: int) -> bytes:
    """The page whose places hold these blocks, ``[places, block bytes]``; zeros after them."""
    size = _number_bytes(block, dtype)
    return (blocks[:, :size].tobytes() + blocks[:, size:].tobytes()).ljust(page_bytes, b"\0")


def page_blocks(page: npt.NDArray[np.uint8], places: int, block: BlockShape, dtype: str) -> npt.NDArray[np.uint8]:
    """The inverse of `page_content`: what lies in a page's places, ``[places, block bytes]``."""
    size, whole = _number_bytes(block, dtype), block_bytes(block, dtype)
    numbers, scales = page[: places * size], page[places * size : places * whole]
    return np.concatenate([numbers.reshape(places, -1), scales.reshape(places, whole - size)], 1)


def _number_bytes(block: BlockShape, dtype: str) -> int:
    return block.size * _STORAGE[dtype].itemsize


def _raw(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).view(np.uint8)


def _rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return np.asarray(((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(_SCALE))


def _rounded_up(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Of values that aren't negative."""
    return np.asarray(((values.view(np.uint32) + np.uint32(0xFFFF)) >> np.uint32(16)).astype(_SCALE))


def _widened(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return np.asarray((bits.astype(np.uint32) << np.uint32(16)).view(np.float32))


def _interleave(blocks: npt.NDArray[Any], group: int) -> npt.NDArray[Any]:
    n, rows, cols = blocks.shape
    return np.ascontiguousarray(blocks.reshape(n, rows, cols // group, group).swapaxes(1, 2)).reshape(n, rows * cols)


def _deinterleave(flat: npt.NDArray[Any], block: BlockShape, group: int) -> npt.NDArray[Any]:
    grouped = flat.reshape(len(flat), block.cols // group, block.rows, group)
    return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(len(flat), block.rows, block.cols)

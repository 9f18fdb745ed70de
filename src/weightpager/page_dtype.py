"""In which dtypes a page's blocks are stored, and how they lie there: all that tells one dtype from another.

The layout is ``interleaved``, ``[cols / p][rows][p]``: element (r, c) of a block lies at
``((c // p) * rows + r) * p + c % p``, p neighbouring input features for all output features of the block side by side.
With p = 2 that is what AVX-512 BF16, AMX and Arm BFDOT consume directly and what AVX2 and NEON widen.

int4 has p = 8 and packs these numbers, each with 8 added to it, into a little-endian word of 32 bits. Input 0 is in its
bits from 0 on, 1 from 16, 2 from 8, 3 from 24, 4 from 4, 5 from 20, 6 from 12, 7 from 28. So the low halves of its
bytes hold four inputs and the high halves four others, for sums of four products, and the low and the high half of the
word hold the even and the odd ones, for sums of pairs.

Where a dtype is scaled, a block has one bfloat16 scale for each of its rows: a weight is its number times that. In a
page the numbers of all blocks come first, then their scales, so that blocks stay aligned.

A new dtype takes a name in `PageDtype` and an entry in `ENCODINGS`, which all else asks. Until a kernel reads it, the
reference serves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from weightpager.blocks import BlockShape

PageDtype = Literal["bfloat16", "float32", "int8", "int4"]
"""Its name in manifests and task files."""

DEFAULT: PageDtype = "int4"
"""What a compile takes unless it is told otherwise: more blocks are worth more than finer numbers."""

_SCALE = np.dtype("<u2")  # numpy has no bfloat16: its bits travel as uint16


_Octets = TypeVar("_Octets", bound=Any)  # bytes, of numpy or torch


@dataclass(frozen=True)
class Encoding:
    """How the weights of one dtype are stored.

    Attributes:
        number: the type of a number; of packed ones, before they are.
        neighbours: the p of the layout.
        narrow: float32 to numbers, rounded to nearest, ties to even.
        widen: numbers to float32.
        bits: that a number takes in a block.
        least, largest: number, where rows have scales.
        divisors: of a row's largest weight, for the scales that are tried; none where rows have no scales.
        first_bits: where each of p numbers begins in the little-endian word that they are packed into, the least of
            them as 0. Empty where numbers lie as numpy has them.
    """

    number: np.dtype[Any]
    neighbours: int
    narrow: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]
    widen: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]
    bits: int
    least: int = 0
    largest: int = 0
    divisors: tuple[float, ...] = ()
    first_bits: tuple[int, ...] = ()

    @property
    def scaled(self) -> bool:
        """Whether each row of a block has a scale."""
        return bool(self.divisors)

    @property
    def levels(self) -> int:
        """How many values a weight may take beside one scale."""
        return self.largest - self.least + 1 if self.scaled else 2**self.bits

    @property
    def word_bytes(self) -> int:
        """Bytes of p neighbouring numbers."""
        return self.neighbours * self.bits // 8

    def number_bytes(self, rows: int, cols: int) -> int:
        """Bytes of a block's numbers."""
        return rows * cols * self.bits // 8

    def scale_bytes(self, rows: int) -> int:
        """Bytes of a block's scales."""
        return rows * _SCALE.itemsize if self.scaled else 0

    def unpacked(self, words: _Octets) -> list[_Octets]:
        """The numbers in packed words: an array [...] for each neighbour.

        Args:
            words: uint8 [..., word bytes], of numpy or torch; numbers are of the same.
        """
        numbers = []
        for octet, bit in (divmod(first, 8) for first in self.first_bits):
            number = words[..., octet] >> bit
            if bit + self.bits > 8:
                number = number | (words[..., octet + 1] << (8 - bit))
            numbers.append(number & (2**self.bits - 1))
        return numbers

    def packed(self, numbers: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Numbers [..., p] as words [..., word bytes]."""
        words = np.zeros((*numbers.shape[:-1], self.word_bytes), np.uint8)
        for at, (octet, bit) in enumerate(divmod(first, 8) for first in self.first_bits):
            words[..., octet] |= numbers[..., at] << bit
            if bit + self.bits > 8:
                words[..., octet + 1] |= numbers[..., at] >> (8 - bit)
        return words


def _rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = values.astype(np.float32, copy=False).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return np.asarray(((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(_SCALE))


def _widened(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return np.asarray((bits.astype(np.uint32) << np.uint32(16)).view(np.float32))


def _float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return values.astype(np.dtype("<f4"), copy=False)


def _int8(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    return np.asarray(np.rint(values).astype(np.int8))


def _above(least: int, values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.asarray((np.rint(values) - np.float32(least)).astype(np.uint8))


def _from_above(least: int, numbers: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return np.asarray(numbers.astype(np.float32) + np.float32(least))


def _packed(bits: int, first_bits: tuple[int, ...], divisors: tuple[float, ...]) -> Encoding:
    """Whole numbers of few bits, as many below 0 as from there on."""
    least, number = -(2 ** (bits - 1)), np.dtype("u1")
    narrow, widen = partial(_above, least), partial(_from_above, least)
    return Encoding(number, len(first_bits), narrow, widen, bits, least, -least - 1, divisors, first_bits)


# From -8 to 7: for what lies between -8 and 8 a scale of either sign may serve better.
_INT4_DIVISORS = (8.0, -8.0, 8.25, -8.25, 8.5, -8.5, 7.5, -7.5, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0)

ENCODINGS: dict[str, Encoding] = {
    "bfloat16": Encoding(_SCALE, 2, _rounded, _widened, 16),
    "float32": Encoding(np.dtype("<f4"), 1, _float32, _float32, 32),
    "int8": Encoding(np.dtype("i1"), 2, _int8, _float32, 8, -127, 127, (127.0, 126.0)),
    "int4": _packed(4, (0, 16, 8, 24, 4, 20, 12, 28), _INT4_DIVISORS),
}
"""Every `PageDtype`."""


def block_bytes(block: BlockShape, dtype: str) -> int:
    """Bytes that one block takes in a page, its scales included."""
    encoding = ENCODINGS[dtype]
    return encoding.number_bytes(block.rows, block.cols) + encoding.scale_bytes(block.rows)


def encode(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.uint8]:
    """Blocks ``[n, rows, cols]`` as bytes ``[n, block bytes]``: numbers as they lie in a page, then scales.

    What `decode` gives is encoded without any further error.
    """
    encoding = ENCODINGS[dtype]
    if not encoding.scaled:
        return _stored(encoding.narrow(values), encoding)
    scales = best_scales(values, encoding)  # [n, rows]
    divisors = _widened(scales)
    divisors[divisors == 0] = 1
    numbers = encoding.narrow((values / divisors[:, :, None]).clip(encoding.least, encoding.largest))
    return np.concatenate([_stored(numbers, encoding), _raw(scales)], 1)


def nearest(values: npt.NDArray[np.float32], encoding: Encoding) -> npt.NDArray[np.float32]:
    """Rows ``[..., cols]`` as they come back, each with the scale that fits it best; of any encoding with scales."""
    scales = _widened(best_scales(values, encoding))[..., None]
    numbers = np.rint(values / np.where(scales == 0, np.float32(1), scales)).clip(encoding.least, encoding.largest)
    return np.asarray(numbers * scales)


def decode(blocks: npt.NDArray[np.uint8], block: BlockShape, dtype: str) -> npt.NDArray[np.float32]:
    """The values ``[n, rows, cols]`` of blocks ``[n, block bytes]``."""
    encoding = ENCODINGS[dtype]
    size = encoding.number_bytes(block.rows, block.cols)
    values = encoding.widen(_numbers(np.ascontiguousarray(blocks[:, :size]), block, encoding))
    if not encoding.scaled:
        return values
    return values * _widened(np.ascontiguousarray(blocks[:, size:]).view(_SCALE))[:, :, None]


def best_scales(weights: npt.NDArray[np.float32], encoding: Encoding) -> npt.NDArray[np.uint16]:
    """The scales [...] of rows ``[..., cols]``, as bits of bfloat16: of each row's candidates the one that fits best.

    A candidate is the row's largest weight, divided by one of the encoding's divisors and rounded to bfloat16. It fits
    best if the squares of what its numbers are off by have the least sum; of equals the first is taken.

    After rounding, a row's largest weight is a whole number n times its scale. The divisors hold every such n. So the
    same scale is found again, and encoding what was decoded changes nothing.

    Squares are added up by halves, ``e[:, :h] + e[:, h:]``, in units of the largest weight: so that nothing overflows,
    and other code can come to the same bits.

    Args:
        weights: whose cols is a power of two.
        encoding: of a dtype whose rows have scales.
    """
    rows = weights.reshape(-1, weights.shape[-1])
    parts = [rows[first : first + _ROWS_AT_ONCE].T for first in range(0, len(rows), _ROWS_AT_ONCE)]
    scales = [_best_scales(np.ascontiguousarray(part), encoding) for part in parts]
    return np.concatenate([np.empty(0, _SCALE), *scales]).reshape(weights.shape[:-1])


_ROWS_AT_ONCE = 4096  # as many as stay in a processor's cache


def _best_scales(weights: npt.NDArray[np.float32], encoding: Encoding) -> npt.NDArray[np.uint16]:
    """Of weights [cols, rows]."""
    largest = np.abs(weights).max(0)
    unit = np.where(largest > 0, largest, np.float32(1))
    best, least = np.zeros(largest.shape, _SCALE), np.full(largest.shape, np.inf, np.float32)
    for divisor in encoding.divisors:
        scales = _rounded(largest / np.float32(divisor))
        wide = _widened(scales)
        usable = (wide != 0) & np.isfinite(wide)
        steps = weights / np.where(usable, wide, np.float32(1))
        off = (steps - np.rint(steps).clip(encoding.least, encoding.largest)) ** 2
        while len(off) > 1:
            off = off[: len(off) // 2] + off[len(off) // 2 :]
        error = off[0] * (wide / unit) ** 2
        better = usable & (error < least)
        best[better], least[better] = scales[better], error[better]
    return best


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


def _stored(numbers: npt.NDArray[Any], encoding: Encoding) -> npt.NDArray[np.uint8]:
    """Numbers [n, rows, cols] as they lie in blocks, [n, bytes]."""
    flat = _interleave(numbers, encoding.neighbours)
    if not encoding.first_bits:
        return _raw(flat)
    return encoding.packed(flat.reshape(len(flat), -1, encoding.neighbours)).reshape(len(flat), -1)


def _numbers(stored: npt.NDArray[np.uint8], block: BlockShape, encoding: Encoding) -> npt.NDArray[Any]:
    """The inverse of `_stored`."""
    if encoding.first_bits:
        words = stored.reshape(len(stored), -1, encoding.word_bytes)
        stored = np.stack(encoding.unpacked(words), -1).reshape(len(stored), -1)
    return _deinterleave(stored.view(encoding.number), block, encoding.neighbours)


def _interleave(blocks: npt.NDArray[Any], group: int) -> npt.NDArray[Any]:
    n, rows, cols = blocks.shape
    return np.ascontiguousarray(blocks.reshape(n, rows, cols // group, group).swapaxes(1, 2)).reshape(n, rows * cols)


def _deinterleave(flat: npt.NDArray[Any], block: BlockShape, group: int) -> npt.NDArray[Any]:
    grouped = flat.reshape(len(flat), block.cols // group, block.rows, group)
    return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(len(flat), block.rows, block.cols)

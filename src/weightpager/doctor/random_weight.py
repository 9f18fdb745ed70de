"""A paged weight of random values, laid out as a compiler writes it, to hold kernels against the reference."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.blocks import BlockShape
from weightpager.kernels import PagedWeight
from weightpager.page_dtype import block_bytes, decode, encode, page_content

_PER_PAGE = 3  # no power of two, so that a wrong page or place doesn't go unseen
_SPARE_PAGES, _SPARE_SLOTS = 2, 2


def random_weight(
    out_features: int, in_features: int, block: BlockShape, dtype: str, random: np.random.Generator
) -> PagedWeight:
    """A weight that keeps about half its blocks, in shuffled places of shuffled pages.

    Whatever is in the arena and not a kept block is filled with bytes that would spoil a result.
    """
    keep = random.random((-(-out_features // block.rows), -(-in_features // block.cols))) < 0.5
    content = encode(_values(keep, out_features, in_features, block, random), dtype)  # [kept, block bytes]
    pages = len(content) // _PER_PAGE + _SPARE_PAGES
    locations = random.permutation(pages * _PER_PAGE)[: len(content)]
    page_table = random.permutation(pages + _SPARE_SLOTS)[:pages]
    places = np.full((pages + _SPARE_SLOTS, _PER_PAGE, block_bytes(block, dtype)), 0xFF, np.uint8)  # 0xFFFF: NaN
    places[page_table[locations // _PER_PAGE], locations % _PER_PAGE] = content
    return PagedWeight(
        arena=_arena(places, block, dtype),
        page_table=_indices(page_table),
        crow_indices=_indices(np.concatenate([[0], keep.sum(1).cumsum()])),
        col_indices=_indices(keep.nonzero()[1]),
        locations=_indices(locations),
        out_features=out_features,
        in_features=in_features,
        block_rows=block.rows,
        block_cols=block.cols,
        dtype=dtype,
    )


def dense_weight(weight: PagedWeight) -> npt.NDArray[np.float64]:
    """What its blocks say, [out_features, in_features], zero where a block is dropped."""
    block = BlockShape(weight.block_rows, weight.block_cols)
    pages, places = np.divmod(weight.locations, weight.blocks_per_page)
    slots = weight.page_table[pages]
    used = weight.blocks_per_page * weight.block_bytes
    parts = []
    for first, size in ((0, weight.block_bytes), (used, weight.scale_bytes)):
        at = first + places[:, None] * size + np.arange(size)
        parts.append(weight.arena[slots[:, None], at])
    grid_rows, grid_cols = weight.grid
    rows = np.repeat(np.arange(grid_rows), np.diff(weight.crow_indices))
    dense: npt.NDArray[np.float64] = np.zeros((grid_rows, grid_cols, block.rows, block.cols))
    dense[rows, weight.col_indices] = decode(np.concatenate(parts, 1), block, weight.dtype)
    whole = dense.swapaxes(1, 2).reshape(grid_rows * block.rows, grid_cols * block.cols)
    return np.asarray(whole[: weight.out_features, : weight.in_features])


def _values(
    keep: npt.NDArray[np.bool_], out_features: int, in_features: int, block: BlockShape, random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """The kept blocks, [kept, rows, cols], zero where they stick out of the weight."""
    grid_rows, grid_cols = keep.shape
    padded = np.zeros((grid_rows * block.rows, grid_cols * block.cols), np.float32)
    padded[:out_features, :in_features] = random.standard_normal((out_features, in_features), np.float32)
    blocks = padded.reshape(grid_rows, block.rows, grid_cols, block.cols).swapaxes(1, 2)
    return np.ascontiguousarray(blocks[keep])


def _arena(places: npt.NDArray[np.uint8], block: BlockShape, dtype: str) -> npt.NDArray[np.uint8]:
    """Slots as pages lie in them, uint8 [slots, page bytes]."""
    page_bytes = places.shape[1] * places.shape[2]
    pages = b"".join(page_content(slot, block, dtype, page_bytes) for slot in places)
    return np.frombuffer(bytearray(pages), np.uint8).reshape(len(places), page_bytes)


def _indices(array: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    return array.astype(np.int32)

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from paging import PAGE_BLOCKS, masked, page
from weightpager.kernels import PagedWeight
from weightpager.kernels.torch import DeviceWeight
from weightpager.kernels.torch.reference import dense_weight

MASK = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=torch.bool)


def weight(**changes: Any) -> PagedWeight:
    paged = page(torch.arange(20 * 30.0).view(20, 30), MASK, 8, 8)  # the last row and column of blocks are partial
    return replace(paged, **changes)


def test_a_valid_weight_knows_its_geometry() -> None:
    paged = weight()
    assert (paged.grid, paged.kept) == ((3, 4), 6)
    assert (paged.block_bytes, paged.blocks_per_page) == (256, PAGE_BLOCKS)


def test_a_trailer_holds_no_blocks() -> None:
    assert page(torch.ones(20, 30), MASK, 8, 8, trailer=255).blocks_per_page == PAGE_BLOCKS


def test_it_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        weight().out_features = 3  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_elements_lie_where_the_layout_says(dtype: torch.dtype) -> None:
    p = 4 // dtype.itemsize
    stored = torch.arange(8 * 16).to(dtype)
    index = int32(0)
    paged = PagedWeight(
        arena=stored.view(torch.uint8).view(1, -1).numpy(),
        page_table=index,
        crow_indices=int32(0, 1),
        col_indices=index,
        locations=index,
        out_features=8,
        in_features=16,
        block_rows=8,
        block_cols=16,
        dtype=str(dtype).removeprefix("torch."),
    )
    expected = [[((c // p) * 8 + r) * p + c % p for c in range(16)] for r in range(8)]
    assert dense_weight(paged).tolist() == expected


def test_int8_blocks_have_their_scales_after_the_last_block() -> None:
    numbers = torch.arange(-64, 64, dtype=torch.int8)
    scales = torch.tensor([0.5, 1, 2, 4, 8, 16, 32, 64]).bfloat16()
    unused = torch.full((16,), 0xFF, dtype=torch.uint8)  # the scales of a second block would begin here
    page = torch.cat([numbers.view(torch.uint8), scales.view(torch.uint8), unused[:7]])
    index = int32(0)
    paged = PagedWeight(page[None].numpy(), index, int32(0, 1), index, index, 8, 16, 8, 16, "int8")
    assert (paged.block_bytes, paged.scale_bytes, paged.blocks_per_page) == (128, 16, 1)
    dense = dense_weight(paged)
    for r, scale in enumerate(scales.tolist()):
        assert dense[r].tolist() == [scale * int(numbers[((c // 2) * 8 + r) * 2 + c % 2]) for c in range(16)]


def test_int4_numbers_lie_where_the_layout_says() -> None:
    first_bits = (0, 16, 8, 24, 4, 20, 12, 28)
    words = torch.randint(-(2**31), 2**31, (2, 8), dtype=torch.int32)  # [cols / 8, rows]
    scales = torch.tensor([0.5, -1, 2, 4, 8, 16, -32, 64]).bfloat16()
    arena = torch.cat([words.view(torch.uint8).flatten(), scales.view(torch.uint8)])[None]
    index = int32(0)
    dense = dense_weight(PagedWeight(arena.numpy(), index, int32(0, 1), index, index, 8, 16, 8, 16, "int4"))
    for r, scale in enumerate(scales.tolist()):
        numbers = [(int(words[c // 8, r]) >> first_bits[c % 8] & 15) - 8 for c in range(16)]
        assert dense[r].tolist() == [scale * number for number in numbers]


def test_the_dense_weight_is_the_masked_one() -> None:
    dense = torch.randn(20, 30)
    assert torch.equal(dense_weight(page(dense, MASK, 8, 8, trailer=5)), masked(dense, MASK, 8, 8))


def int32(*values: int) -> npt.NDArray[np.int32]:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "dtype: expected bfloat16, float32, int8 or int4, got float16"),
        ({"out_features": 0}, "out_features: expected 1 to"),
        ({"in_features": 2**31}, "in_features: expected 1 to"),
        ({"block_rows": 4}, "block_rows: expected a power of two from 8 to 256, got 4"),
        ({"block_cols": 512}, "block_cols: expected a power of two from 8 to 256, got 512"),
        ({"block_rows": 24}, "block_rows: expected a power of two from 8 to 256, got 24"),
        ({"block_rows": 16}, "crow_indices: expected 3 entries, got 4"),
        ({"arena": torch.zeros(3, 768)}, "arena: expected a numpy array, got Tensor"),
        ({"arena": np.zeros((3, 768), np.float32)}, "arena: expected 2-d uint8, got 2-d float32"),
        ({"arena": np.zeros(768, np.uint8)}, "arena: expected 2-d uint8, got 1-d"),
        ({"arena": np.zeros((3, 255), np.uint8)}, "arena: expected pages of at least 256 bytes, got 255"),
        ({"arena": np.zeros((768, 3), np.uint8).T}, "arena: expected a contiguous array"),
        ({"page_table": np.zeros(4, np.int64)}, "page_table: expected 1-d int32, got 1-d"),
        ({"page_table": np.zeros(8, np.int32)[::2]}, "page_table: expected a contiguous array"),
        ({"crow_indices": int32(0, 3, 6)}, "crow_indices: expected 4 entries, got 3"),
        ({"crow_indices": int32(0, 3, 3, 5)}, "crow_indices: expected them to go from 0 to 6, got 0 to 5"),
        ({"crow_indices": int32(1, 3, 3, 6)}, "crow_indices: expected them to go from 0 to 6, got 1 to 6"),
        ({"crow_indices": int32(0, 5, 3, 6)}, "crow_indices: expected ascending entries"),
        ({"crow_indices": int32(0, 7, 7, 6)}, "crow_indices: expected ascending entries"),
        ({"crow_indices": int32(0, -1, 3, 6)}, "crow_indices: expected ascending entries"),
        ({"col_indices": int32(0, 2, 3, 0, 1, 4)}, "col_indices: expected entries from 0 to 3, got 0 to 4"),
        ({"col_indices": int32(-1, 2, 3, 0, 1, 3)}, "col_indices: expected entries from 0 to 3, got -1 to 3"),
        ({"col_indices": int32(0, 3, 2, 0, 1, 3)}, "col_indices: expected strictly ascending"),
        ({"col_indices": int32(0, 2, 2, 0, 1, 3)}, "col_indices: expected strictly ascending"),
        ({"locations": int32(0, 1, 2, 3, 4)}, "locations: expected 6 entries, got 5"),
        ({"locations": int32(0, 1, 2, 3, 4, 12)}, "locations: expected entries from 0 to 11, got 0 to 12"),
        ({"locations": int32(0, 1, 2, 3, 4, -1)}, "locations: expected entries from 0 to 11, got -1 to 4"),
        ({"page_table": int32(0)}, "locations: expected entries from 0 to 2"),
    ],
)
def test_corrupt_tables_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        weight(**changes)


def test_a_device_refuses_what_the_host_does() -> None:
    on_device = DeviceWeight.of(weight())
    assert (on_device.grid, on_device.kept, on_device.blocks_per_page) == ((3, 4), 6, PAGE_BLOCKS)
    assert torch.equal(dense_weight(on_device), dense_weight(weight()))
    for changes, message in (
        ({"arena": torch.zeros(3, 768)}, "arena: expected 2-d torch.uint8, got 2-d torch.float32"),
        ({"arena": torch.zeros(768, 3, dtype=torch.uint8).T}, "arena: expected a contiguous tensor"),
        (
            {"arena": torch.zeros(3, 768, dtype=torch.uint8, device="meta")},
            "page_table: expected a dense tensor on meta",
        ),
        ({"page_table": torch.zeros(4, dtype=torch.int64)}, "page_table: expected 1-d torch.int32, got 1-d"),
        ({"col_indices": torch.tensor([0, 2, 2, 0, 1, 3]).int()}, "col_indices: expected strictly ascending"),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            replace(on_device, **changes)  # type: ignore[arg-type]

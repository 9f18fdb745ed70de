"""Whole weights in blocks: how tables are stored in them, and the fast way to look rows up against the reference."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weightpager.blocks import BlockShape
from weightpager.bundle.format.whole_weight import WholeWeightEntry, decode_whole, encode_whole
from weightpager.kernels import PagedWeight
from weightpager.kernels.paged_weight import whole_weight
from weightpager.kernels.torch import paged_linear
from weightpager.kernels.torch.reference import dense_weight
from weightpager.kernels.torch.tables import look_up, reference
from weightpager.page_dtype import ENCODINGS, PageDtype

BLOCKS = st.builds(BlockShape, st.sampled_from([8, 16, 64]), st.sampled_from([8, 32, 256]))
SCALED: list[PageDtype] = [dtype for dtype in get_args(PageDtype) if ENCODINGS[dtype].scaled]
DTYPES = st.sampled_from(SCALED)


def table(rows: int, columns: int, block: BlockShape, dtype: PageDtype, seed: int = 0) -> tuple[PagedWeight, Tensor]:
    """A table of random values, and these as they come back."""
    random = np.random.default_rng(seed)
    values = (random.standard_normal((rows, columns)) * 10.0 ** random.integers(-4, 4, (rows, 1))).astype(np.float32)
    entry = WholeWeightEntry(name="t", rows=rows, columns=columns, dtype=dtype)
    stored = encode_whole(values, entry, block)
    assert stored.shape == entry.stored(block).shape
    assert stored.nbytes == entry.bytes(block) < entry.memory(block)
    again = decode_whole(stored, entry, block)
    assert (decode_whole(encode_whole(again, entry, block), entry, block) == again).all()
    made = whole_weight(stored, rows, columns, (block.rows, block.cols), dtype)
    return made, torch.from_numpy(again)


@pytest.mark.slow
@given(
    st.integers(1, 150),
    st.integers(1, 300),
    BLOCKS,
    DTYPES,
    st.integers(0, 40),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([torch.int64, torch.int32]),
    st.integers(0, 2**32 - 1),
)
def test_rows_are_looked_up_as_the_reference_does(
    rows: int,
    columns: int,
    block: BlockShape,
    dtype: PageDtype,
    n: int,
    out: torch.dtype,
    of_ids: torch.dtype,
    seed: int,
) -> None:
    weight, values = table(rows, columns, block, dtype, seed)
    assert torch.equal(dense_weight(weight), values)
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, rows, n))
    expected = values[ids].to(out)
    assert torch.equal(look_up(weight, ids.to(of_ids), out), expected)
    assert torch.equal(reference(weight, ids, out), expected)


@pytest.mark.parametrize("dtype", SCALED)
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_table_is_multiplied_by_as_any_paged_weight(dtype: PageDtype, tokens: int) -> None:
    weight, values = table(301, 200, BlockShape(16, 32), dtype)
    values = values / values.abs().max(1, keepdim=True).values
    entry = WholeWeightEntry(name="t", rows=301, columns=200, dtype=dtype)
    stored = encode_whole(values.numpy(), entry, BlockShape(16, 32))
    weight = whole_weight(stored, 301, 200, (16, 32), dtype)
    x = torch.randn(2, tokens, 200, generator=torch.Generator().manual_seed(0))
    expected = x @ dense_weight(weight).T
    assert float((paged_linear(x, weight) - expected).norm() / expected.norm()) < 2e-4


def test_ids_of_any_shape_and_strides_are_looked_up() -> None:
    weight, values = table(40, 50, BlockShape(16, 32), "int8")
    ids = torch.tensor([[3, 39, 3], [0, 17, 2]])
    for some in (ids.T, ids[:, -1:], ids[:, 0], ids[:1, :1].expand(5, 1), torch.tensor(7)):
        assert torch.equal(look_up(weight, some, torch.float32), values[some])
    assert look_up(weight, ids[:0], torch.bfloat16).shape == (0, 3, 50)


def test_rows_lie_on_the_host_whatever_the_default_device() -> None:
    weight, values = table(40, 50, BlockShape(16, 32), "int8")
    ids = torch.tensor([3, 39])
    with torch.device("meta"):
        found = look_up(weight, ids, torch.float32)
    assert torch.equal(found, values[ids])


@pytest.mark.parametrize("ids", [[40], [0, -1], [47], [2**40]])
def test_ids_out_of_range_are_refused(ids: list[int]) -> None:
    weight, _ = table(40, 50, BlockShape(16, 32), "int4")
    with pytest.raises(IndexError, match="from 0 to 39"):
        look_up(weight, torch.tensor(ids), torch.float32)
    with pytest.raises(IndexError):
        reference(weight, torch.tensor(ids), torch.float32)


def test_ids_that_are_no_whole_numbers_are_refused() -> None:
    weight, _ = table(40, 50, BlockShape(16, 32), "int4")
    with pytest.raises(TypeError, match="int64 or int32"):
        look_up(weight, torch.tensor([1.0]), torch.float32)


def test_memory_that_is_no_such_table_is_refused() -> None:
    weight, _ = table(40, 50, BlockShape(16, 32), "int8")
    pages = weight.arena
    narrow = np.ascontiguousarray(pages[:, :-2])
    for some, rows, dtype in (
        (pages[:2], 40, "int8"),
        (pages, 49, "int8"),
        (narrow, 40, "int8"),
    ):
        with pytest.raises(ValueError, match="expected"):
            whole_weight(some, rows, 50, (16, 32), dtype)
    with pytest.raises(ValueError, match="with scales"):
        whole_weight(np.zeros((3, 2 * 1024), np.uint8), 40, 50, (16, 32), "bfloat16")

"""The dense model in few bits: as near as its bytes allow."""

from __future__ import annotations

import pytest
import torch

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.compiler.controls import INT2, INT3, INT4, INT8, QUANTISATIONS, Quantisation
from weightpager.compiler.recovery.rounding import stored


def weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def error(found: torch.Tensor, given: torch.Tensor) -> float:
    return float((found - given).square().sum() / given.square().sum())


def test_int4_is_what_a_bundle_of_all_blocks_gives_back() -> None:
    given = weight(64, 96)
    grid = BlockGrid(64, 96, BlockShape(16, 32))
    assert torch.equal(INT4.apply(given), stored(given, grid, "int4"))


@pytest.mark.parametrize(("bits", "most"), [(8, 0.0001), (4, 0.0068), (3, 0.027), (2, 0.112)])
def test_normal_weights_come_back_as_near_as_their_bits_allow(bits: int, most: float) -> None:
    given = weight(512, 256)
    assert error(QUANTISATIONS[f"int{bits}"].apply(given), given) < most


@pytest.mark.parametrize("quantisation", [INT8, INT4, INT3, INT2])
@pytest.mark.parametrize("columns", [1, 31, 32, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_width_comes_back(quantisation: Quantisation, columns: int, dtype: torch.dtype) -> None:
    given = weight(5, columns).to(dtype)
    given[2] = 0
    found = quantisation.apply(given)
    assert (found.shape, found.dtype) == (given.shape, dtype)
    assert not found[2].any()
    levels = 2**quantisation.bits
    assert all(len(set(row.tolist())) <= levels for row in found[:, :32].float())


@pytest.mark.parametrize(("quantisation", "fraction"), [(INT8, 0.5 + 1 / 128), (INT4, 0.28125), (INT2, 0.15625)])
def test_scales_count(quantisation: Quantisation, fraction: float) -> None:
    assert quantisation.fraction(128) == fraction

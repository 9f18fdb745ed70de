from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.bundle import BlockTable
from weightpager.errors import BundleFormatError

GRID = BlockGrid(24, 40, BlockShape(8, 8))  # 3 x 5 blocks


def table() -> BlockTable:
    keep = np.zeros((3, 5), bool)
    keep[0, [1, 4]] = keep[2, [0, 2, 3]] = True
    return BlockTable.build(keep, np.arange(15).reshape(3, 5))


def test_build_lists_blocks_row_by_row() -> None:
    built = table()
    assert built.crow_indices.tolist() == [0, 2, 2, 5]
    assert built.col_indices.tolist() == [1, 4, 0, 2, 3]
    assert built.locations.tolist() == [1, 4, 10, 12, 13]
    built.validate(GRID, 15, "file", "weight")


@given(arrays(bool, (3, 5)))
def test_a_keep_mask_survives_its_table(keep: np.ndarray) -> None:
    built = BlockTable.build(keep, np.arange(15).reshape(3, 5))
    built.validate(GRID, 15, "file", "weight")
    assert np.array_equal(built.blocks(GRID), np.flatnonzero(keep))


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crow_indices", int32(0, 2, 2)),
        ("crow_indices", int32(0, 3, 2, 5)),
        ("crow_indices", int32(1, 2, 2, 5)),
        ("crow_indices", int32(0, 2, 2, 6)),
        ("crow_indices", np.array([0, 2, 2, 5], np.int64)),
        ("crow_indices", int32(0, 2**31 - 1, -(2**31), 5)),
        ("col_indices", int32(4, 1, 0, 2, 3)),
        ("col_indices", int32(1, 1, 0, 2, 3)),
        ("col_indices", int32(1, 5, 0, 2, 3)),
        ("col_indices", int32(-1, 4, 0, 2, 3)),
        ("locations", int32(1, 4, 10, 12)),
        ("locations", int32(1, 4, 10, 12, 15)),
        ("locations", int32(1, 4, 10, 12, -1)),
        ("locations", np.zeros((5, 1), np.int32)),
    ],
)
def test_a_hostile_table_is_refused_by_name(field: str, value: np.ndarray) -> None:
    with pytest.raises(BundleFormatError, match=r"tables: weight\.\w+: expected"):
        replace(table(), **{field: value}).validate(GRID, 15, "tables", "weight")

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import arrays

from placements import table_of
from weightpager.blocks import BlockGrid, BlockShape

GRID = BlockGrid(24, 40, BlockShape(8, 8))  # 3 x 5 blocks


@given(arrays(bool, (3, 5)))
def test_a_keep_mask_survives_its_table(keep: np.ndarray) -> None:
    built = table_of(keep, np.arange(15).reshape(3, 5))
    assert np.array_equal(built.blocks(GRID), np.flatnonzero(keep))

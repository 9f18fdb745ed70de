import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.bundle.layout import deinterleave, interleave
from weightpager.errors import ConfigError

shapes = st.sampled_from([BlockShape(8, 8), BlockShape(16, 32), BlockShape(64, 16)])


def test_bfloat16_pairs_of_input_features_lie_together_for_all_outputs() -> None:
    block = np.arange(8 * 8, dtype=np.uint16).reshape(1, 8, 8)
    flat = interleave(block)[0]
    assert flat[:6].tolist() == [0, 1, 8, 9, 16, 17]
    for row, col in ((0, 0), (3, 5), (7, 7)):
        assert flat[((col // 2) * 8 + row) * 2 + col % 2] == block[0, row, col]


@given(shapes, st.sampled_from([np.uint16, np.float32]), st.integers(1, 4))
def test_deinterleave_undoes_interleave(block: BlockShape, dtype: type, count: int) -> None:
    blocks = np.random.default_rng(0).integers(0, 99, (count, block.rows, block.cols)).astype(dtype)
    assert np.array_equal(deinterleave(interleave(blocks), block), blocks)


@given(shapes, st.integers(1, 100), st.integers(1, 100))
def test_join_undoes_cut_also_where_the_last_blocks_are_partial(block: BlockShape, rows: int, cols: int) -> None:
    grid = BlockGrid(rows, cols, block)
    weight = np.random.default_rng(0).random((rows, cols))
    assert np.array_equal(grid.join(grid.cut(weight)), weight)


@pytest.mark.parametrize("text", ["16", "16x33", "0x8", "4x8", "axb", "512x8", "16x32x2", ""])
def test_a_wrong_block_shape_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="block"):
        BlockShape.parse(text)

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.errors import ConfigError
from weightpager.page_dtype import ENCODINGS, block_bytes, decode, encode, page_blocks, page_content

shapes = st.sampled_from([BlockShape(8, 8), BlockShape(16, 32), BlockShape(64, 16)])
dtypes = st.sampled_from(list(ENCODINGS))


def drawn(block: BlockShape, count: int, seed: int) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    values = random.standard_normal((count, block.rows, block.cols)) * 10.0 ** random.integers(-6, 6, (count, 1, 1))
    values[random.random(values.shape) < 0.1] = 0
    return values.astype(np.float32)


def test_pairs_of_input_features_lie_together_for_all_outputs() -> None:
    block = np.arange(8 * 8, dtype=np.float32).reshape(1, 8, 8)
    flat = torch.from_numpy(encode(block, "bfloat16")[0]).view(torch.bfloat16)
    assert flat[:6].tolist() == [0, 1, 8, 9, 16, 17]
    for row, col in ((0, 0), (3, 5), (7, 7)):
        assert flat[((col // 2) * 8 + row) * 2 + col % 2] == block[0, row, col]


@given(shapes, st.integers(1, 4), st.integers(0, 2**16))
def test_values_come_back_as_the_dtype_rounds_them(block: BlockShape, count: int, seed: int) -> None:
    values = drawn(block, count, seed)
    assert np.array_equal(decode(encode(values, "float32"), block, "float32"), values)
    rounded = torch.from_numpy(values).bfloat16().float().numpy()
    assert np.array_equal(decode(encode(values, "bfloat16"), block, "bfloat16"), rounded)


@given(shapes, st.integers(1, 4), st.integers(0, 2**16))
def test_int8_is_off_by_half_a_step_at_most(block: BlockShape, count: int, seed: int) -> None:
    values = drawn(block, count, seed)
    values[0, 0] = 0  # a row of nothing has no step
    steps = np.abs(values).max(2, keepdims=True) / 127 * (1 + 2**-7)  # a bfloat16 is a 128th above at most
    coded = encode(values, "int8")
    assert coded.shape == (count, block_bytes(block, "int8"))
    assert (np.abs(decode(coded, block, "int8") - values) <= steps / 2).all()


@given(shapes, dtypes, st.integers(1, 4), st.integers(0, 2**16), st.integers(0, 100))
def test_a_page_gives_its_blocks_back(block: BlockShape, dtype: str, places: int, seed: int, rest: int) -> None:
    blocks = encode(drawn(block, places, seed), dtype)
    size = blocks.nbytes + rest
    page = page_content(blocks, block, dtype, size)
    assert len(page) == size
    assert np.array_equal(page_blocks(np.frombuffer(page, np.uint8), places, block, dtype), blocks)


@given(shapes, st.integers(1, 100), st.integers(1, 100))
def test_join_undoes_cut_also_where_the_last_blocks_are_partial(block: BlockShape, rows: int, cols: int) -> None:
    grid = BlockGrid(rows, cols, block)
    weight = np.random.default_rng(0).random((rows, cols))
    assert np.array_equal(grid.join(grid.cut(weight)), weight)


@pytest.mark.parametrize("text", ["16", "16x33", "0x8", "4x8", "axb", "512x8", "16x32x2", ""])
def test_a_wrong_block_shape_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="block"):
        BlockShape.parse(text)

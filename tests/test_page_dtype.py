from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.errors import ConfigError
from weightpager.page_dtype import (
    ENCODINGS,
    best_scales,
    block_bytes,
    decode,
    encode,
    page_blocks,
    page_content,
)

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
    steps = np.abs(values).max(2, keepdims=True) / 126 * (1 + 2**-8)  # a bfloat16 is off by a 256th at most
    coded = encode(values, "int8")
    assert coded.shape == (count, block_bytes(block, "int8"))
    assert (np.abs(decode(coded, block, "int8") - values) <= steps / 2).all()


@given(shapes, st.integers(1, 4), st.integers(0, 2**16))
def test_int4_is_off_by_half_a_step_but_for_what_it_cuts_off(block: BlockShape, count: int, seed: int) -> None:
    values = drawn(block, count, seed)
    values[0, 0] = 0
    coded = encode(values, "int4")
    assert coded.shape == (count, block_bytes(block, "int4"))
    largest = np.abs(values).max(2, keepdims=True)
    off = np.abs(decode(coded, block, "int4") - values)
    # A scale is a whole part of the largest weight, or a little less than an eighth of it, which cuts off half a step.
    assert (off <= largest / 2 * (1 + 2**-7)).all()
    simple = largest / 7 * (1 + 2**-7)  # rounding to nearest with this scale is one of the candidates
    assert (off.astype(np.float64) ** 2).sum() <= (simple.astype(np.float64) ** 2 / 4).sum() * block.cols


@given(shapes, dtypes, st.integers(1, 4), st.integers(0, 2**16))
def test_what_has_been_rounded_comes_back_exactly(block: BlockShape, dtype: str, count: int, seed: int) -> None:
    once = decode(encode(drawn(block, count, seed), dtype), block, dtype)
    assert np.array_equal(decode(encode(once, dtype), block, dtype), once)


@given(st.integers(1, 8), st.integers(0, 2**16))
def test_packed_numbers_may_go_on_in_the_next_byte(bits: int, seed: int) -> None:
    encoding = replace(ENCODINGS["int4"], bits=bits, first_bits=tuple(range(0, 8 * bits, bits)))
    numbers = np.random.default_rng(seed).integers(0, 2**bits, (5, 8), np.uint8)
    words = encoding.packed(numbers)
    wanted = [sum(int(number) << bits * at for at, number in enumerate(row)) for row in numbers]
    assert [int.from_bytes(word.tobytes(), "little") for word in words] == wanted
    assert np.array_equal(np.stack(encoding.unpacked(words), -1), numbers)
    assert np.array_equal(torch.stack(encoding.unpacked(torch.from_numpy(words)), -1).numpy(), numbers)


@given(st.integers(0, 2**16), st.integers(1, 8), st.integers(0x0001, 0x7EFF), st.booleans())
def test_int4_finds_any_scale_again(seed: int, largest: int, bits: int, negative: bool) -> None:
    """Down to numbers that are barely there, and up to the largest that eight of them don't overflow."""
    bits = min(bits, 0x7DFF)
    scale = np.array([bits | negative << 15], "<u2").astype(np.uint32) << 16
    numbers = np.random.default_rng(seed).integers(-largest, min(largest, 7) + 1, (1, 8, 32))
    numbers[:, :, 0] = -largest
    values = (numbers * scale.view(np.float32)[0]).astype(np.float32)
    assert np.array_equal(decode(encode(values, "int4"), BlockShape(8, 32), "int4"), values)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_scale_is_the_candidate_that_fits_best(dtype: str) -> None:
    encoding = ENCODINGS[dtype]
    rows = np.random.default_rng(0).standard_normal((300, 32)).astype(np.float32)
    found = torch.from_numpy(best_scales(rows, encoding).view(np.int16)).view(torch.bfloat16).double()

    def off(scale: torch.Tensor) -> torch.Tensor:
        steps = torch.from_numpy(rows).double() / scale[:, None]
        numbers = steps.round().clamp(encoding.least, encoding.largest)
        return ((numbers - steps) * scale[:, None]).square().sum(1)

    largest = torch.from_numpy(np.abs(rows).max(1))
    tried = torch.stack([off((largest / divisor).bfloat16().double()) for divisor in encoding.divisors])
    torch.testing.assert_close(off(found), tried.min(0).values)


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

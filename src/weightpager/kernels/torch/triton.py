"""The paged linear layer as Triton compiles it; `weightpager.kernels.torch.gpu` chooses the constants.

One program computes OUTPUTS outputs of one row of blocks for TOKENS tokens. It walks along the kept blocks of its row,
WORDS words of each output at a time: in a block the neighbouring features of an output are one word (see
`weightpager.page_dtype`). So a step reads words that lie one after another, wherever the page table says that their
blocks are, and multiplies them with the activations of their features: few tokens on the vector units, since they wait
for the weights anyway, many on the matrix units (MATRIX), as bfloat16 beside activations of bfloat16 (BFLOAT16).

An output that needs a page which isn't in the arena is NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

_CHANGING = ["tokens", "slots", "gate_slots"]
"""Arguments for which Triton would compile again when they are 1 or a multiple of 16 for the first time."""


@triton.jit(do_not_specialize=_CHANGING)
def linear(
    x, y,
    words, scales, page_table, crow_indices, col_indices, locations, slots, bias,
    tokens, out_features, in_features,
    HAS_BIAS: tl.constexpr,
    PAGE: tl.constexpr, PER_PAGE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, DTYPE: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, WORDS: tl.constexpr, MATRIX: tl.constexpr, BFLOAT16: tl.constexpr,
):  # fmt: skip
    """``y = x Wᵀ + bias``."""
    sums = _product(
        x, words, scales, page_table, crow_indices, col_indices, locations, slots, bias,
        tokens, out_features, in_features,
        HAS_BIAS, PAGE, PER_PAGE, BLOCK_ROWS, BLOCK_COLS, DTYPE, TOKENS, OUTPUTS, WORDS, MATRIX, BFLOAT16,
    )  # fmt: skip
    _store(y, sums, tokens, out_features, BLOCK_ROWS, TOKENS, OUTPUTS)


@triton.jit(do_not_specialize=_CHANGING)
def gated(
    x, y,
    gate_words, gate_scales, gate_page_table, gate_crow_indices, gate_col_indices, gate_locations, gate_slots,
    gate_bias,
    words, scales, page_table, crow_indices, col_indices, locations, slots, bias,
    tokens, out_features, in_features,
    HAS_GATE_BIAS: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    PAGE: tl.constexpr, PER_PAGE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, DTYPE: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, WORDS: tl.constexpr, MATRIX: tl.constexpr, BFLOAT16: tl.constexpr,
):  # fmt: skip
    """``y = activation(x Gᵀ + gate bias) (x Wᵀ + bias)``."""
    gate = _product(
        x, gate_words, gate_scales, gate_page_table, gate_crow_indices, gate_col_indices, gate_locations, gate_slots,
        gate_bias, tokens, out_features, in_features,
        HAS_GATE_BIAS, PAGE, PER_PAGE, BLOCK_ROWS, BLOCK_COLS, DTYPE, TOKENS, OUTPUTS, WORDS, MATRIX, BFLOAT16,
    )  # fmt: skip
    sums = _product(
        x, words, scales, page_table, crow_indices, col_indices, locations, slots, bias,
        tokens, out_features, in_features,
        HAS_BIAS, PAGE, PER_PAGE, BLOCK_ROWS, BLOCK_COLS, DTYPE, TOKENS, OUTPUTS, WORDS, MATRIX, BFLOAT16,
    )  # fmt: skip
    if ACTIVATION == "silu":
        share = tl.sigmoid(gate)
    else:  # gelu_tanh; (1 + tanh z) / 2 is sigmoid(2 z)
        share = tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    _store(y, gate * share * sums, tokens, out_features, BLOCK_ROWS, TOKENS, OUTPUTS)


@triton.jit
def _product(
    x, words, scales, page_table, crow_indices, col_indices, locations, slots, bias, tokens, out_features, in_features,
    HAS_BIAS: tl.constexpr,
    PAGE: tl.constexpr, PER_PAGE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, DTYPE: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, WORDS: tl.constexpr, MATRIX: tl.constexpr, BFLOAT16: tl.constexpr,
):  # fmt: skip
    """``x Wᵀ + bias`` for this program's tokens and outputs, float32 [TOKENS, OUTPUTS]."""
    neighbours: tl.constexpr = 1 if DTYPE == "float32" else 8 if DTYPE == "int4" else 2
    steps: tl.constexpr = BLOCK_COLS // neighbours  # words of an output in a block
    page_words: tl.constexpr = PAGE // (2 if DTYPE == "int8" else 4)
    one_block: tl.constexpr = DTYPE == "int8" and MATRIX  # at a time

    row, output, token = _place(out_features, BLOCK_ROWS, OUTPUTS, TOKENS)
    first = tl.load(crow_indices + row)
    length = (tl.load(crow_indices + row + 1) - first) * steps
    sums = tl.zeros((TOKENS, OUTPUTS), tl.float32)
    for start in range(0, length, WORDS):
        word = start + tl.arange(0, WORDS)
        wanted = word < length
        block, step = first + word // steps, word % steps
        slot, place, there = _find(block, wanted, locations, page_table, slots, PER_PAGE)
        at = slot * page_words + (place * steps + step) * BLOCK_ROWS
        packed = tl.load(words + at[:, None] + output[None, :], mask=there[:, None], other=0)  # [WORDS, OUTPUTS]
        feature = tl.load(col_indices + block, mask=wanted, other=0) * BLOCK_COLS + step * neighbours
        feature = tl.where(wanted, feature, in_features)  # beyond the last there is nothing to multiply
        if DTYPE == "int8" or DTYPE == "int4":
            # Numbers before it in its page are counted in words of a scale's size.
            numbers: tl.constexpr = PER_PAGE * BLOCK_ROWS * BLOCK_COLS // (2 if DTYPE == "int8" else 4)
            at = slot * (PAGE // 2) + numbers + place * BLOCK_ROWS
            scale = tl.load(scales + at[:, None] + output[None, :], mask=there[:, None], other=0).to(tl.float32)
        absent = (wanted & (there == 0))[:, None]
        fresh = tl.zeros((TOKENS, OUTPUTS), tl.float32) if one_block else sums
        for neighbour in tl.static_range(neighbours):
            weights = _unpacked(packed, DTYPE, neighbour)
            if (DTYPE == "int8" or DTYPE == "int4") and not one_block:
                weights = weights * scale
            weights = tl.where(absent, float("nan"), weights)
            fresh = _add(fresh, x, token, feature + neighbour, weights, tokens, in_features, MATRIX, BFLOAT16)
        sums = sums + fresh * tl.max(scale, 0)[None, :] if one_block else fresh  # all words have the same scales
    if HAS_BIAS:
        number = row * BLOCK_ROWS + output
        sums += tl.load(bias + number, mask=number < out_features, other=0).to(tl.float32)[None, :]
    return sums


@triton.jit
def _place(out_features, BLOCK_ROWS: tl.constexpr, OUTPUTS: tl.constexpr, TOKENS: tl.constexpr):
    """This program's row of blocks, its outputs in that, [OUTPUTS], and its tokens, [TOKENS].

    All programs are in the grid's first dimension, as the others end at 65,535.
    """
    parts: tl.constexpr = BLOCK_ROWS // OUTPUTS
    across = tl.cdiv(out_features, BLOCK_ROWS) * parts
    part = tl.program_id(0) % across
    output = (part % parts) * OUTPUTS + tl.arange(0, OUTPUTS)
    return part // parts, output, (tl.program_id(0) // across) * TOKENS + tl.arange(0, TOKENS)


@triton.jit
def _find(block, wanted, locations, page_table, slots, PER_PAGE: tl.constexpr):
    """Where blocks are now, and whether they are in the arena; False for blocks that aren't wanted."""
    location = tl.load(locations + block, mask=wanted, other=0)
    slot = tl.load(page_table + location // PER_PAGE, mask=wanted, other=-1)
    return slot.to(tl.int64), location % PER_PAGE, (slot >= 0) & (slot < slots)


@triton.jit
def _unpacked(found, DTYPE: tl.constexpr, NEIGHBOUR: tl.constexpr):
    """The weights of one of a word's neighbouring features."""
    if DTYPE == "bfloat16":
        bits = (found << 16) if NEIGHBOUR == 0 else (found & -65536)
        weights = bits.to(tl.float32, bitcast=True)
    elif DTYPE == "int8":
        wide = found.to(tl.int32)
        weights = (((wide << 24) >> 24) if NEIGHBOUR == 0 else (wide >> 8)).to(tl.float32)
    elif DTYPE == "int4":
        # Of neighbours 0 to 7 the first bits are 0, 16, 8, 24, 4, 20, 12, 28: a number's own bits the other way round.
        first: tl.constexpr = NEIGHBOUR % 2 * 16 + NEIGHBOUR // 2 % 2 * 8 + NEIGHBOUR // 4 * 4
        weights = (((found >> first) & 15) - 8).to(tl.float32)
    else:
        weights = found
    return weights


@triton.jit
def _add(sums, x, token, feature, weights, tokens, in_features, MATRIX: tl.constexpr, BFLOAT16: tl.constexpr):
    """``sums`` and the product of these tokens' features with ``weights`` [WORDS, OUTPUTS]."""
    at = token.to(tl.int64)[:, None] * in_features + feature[None, :]
    values = tl.load(x + at, mask=(token < tokens)[:, None] & (feature < in_features)[None, :], other=0)
    if not MATRIX:
        sums += tl.sum(values.to(tl.float32)[:, :, None] * weights[None, :, :], 1)
    elif BFLOAT16:
        sums = tl.dot(values, weights.to(tl.bfloat16), sums)
    else:
        sums = tl.dot(values.to(tl.float32), weights, sums, input_precision="ieee")
    return sums


@triton.jit
def _store(
    y, sums, tokens, out_features, BLOCK_ROWS: tl.constexpr, TOKENS: tl.constexpr, OUTPUTS: tl.constexpr
):  # fmt: skip
    row, output, token = _place(out_features, BLOCK_ROWS, OUTPUTS, TOKENS)
    number = row * BLOCK_ROWS + output
    at = token.to(tl.int64)[:, None] * out_features + number[None, :]
    tl.store(y + at, sums.to(y.dtype.element_ty), mask=(token < tokens)[:, None] & (number < out_features)[None, :])

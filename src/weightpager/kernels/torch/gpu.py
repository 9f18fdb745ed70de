"""The paged linear layer on a GPU: the checked call of Triton's kernels.

Nothing here waits for the device. Therefore a page that isn't in the arena can't raise an error: whatever depends on it
is NaN.

Importing this module fails with ImportError where Triton isn't installed; torch's builds for CUDA bring it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from weightpager.kernels.torch import reference
from weightpager.kernels.torch.device_weight import DeviceWeight, operands
from weightpager.page_dtype import ENCODINGS

# One program computes OUTPUTS outputs of one row of blocks for TOKENS tokens. It walks along the kept blocks of its
# row, WORDS words of each output at a time: in a block the neighbouring features of an output are one word (see
# `weightpager.page_dtype`). So a step reads words that lie one after another, wherever the page table says that their
# blocks are, and multiplies them with the activations of their features: few tokens on the vector units, since they
# wait for the weights anyway, many on the matrix units (MATRIX), as bfloat16 beside activations of bfloat16 (BFLOAT16).

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


_WORDS = {"float32": torch.float32, "bfloat16": torch.int32, "int8": torch.int16, "int4": torch.int32}
"""What an output's neighbouring features are read as, by the weight's dtype."""

READS = frozenset(_WORDS)
"""The pages' dtypes that these kernels read."""

_INTERPRETED = not isinstance(linear, triton.JITFunction)
"""Whether ``TRITON_INTERPRET`` was set when kernels were imported."""

_MATRIX = 16  # least tokens, outputs and words of a step that matrix units multiply


def paged_linear(x: Tensor, weight: DeviceWeight, bias: Tensor | None) -> Tensor:
    """As `weightpager.kernels.torch.paged_linear`, which has checked ``x`` and ``bias``.

    An output that needs a page which isn't in the arena is NaN. Pages whose size is no multiple of four bytes are
    refused.
    """
    return _launch(linear, x, [(weight, bias)], HAS_BIAS=bias is not None)


def paged_gated(
    x: Tensor,
    gate: DeviceWeight,
    weight: DeviceWeight,
    activation: str,
    biases: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """``activation(x @ gate.T + biases[0]) * (x @ W.T + biases[1])``, as `paged_linear`."""
    return _launch(
        gated,
        x,
        [(gate, biases[0]), (weight, biases[1])],
        HAS_GATE_BIAS=biases[0] is not None,
        HAS_BIAS=biases[1] is not None,
        ACTIVATION=activation,
    )


def check(device: str | torch.device) -> None:
    """Compute a few outputs on a device, of one token and of many, and compare them with the reference.

    Triton compiles for the very GPU that is there, so whether that works, and is right, shows only there.

    Raises:
        RuntimeError: they differ, or what Triton, torch or the compiler say.
    """
    if _INTERPRETED and torch.device(device).type != "cpu":
        # It works on a copy of the whole arena, and writes that back over pages that have come meanwhile.
        raise RuntimeError("TRITON_INTERPRET is set, and Triton's interpreter can't share an arena with loads")
    drawn, biases = torch.Generator("cpu").manual_seed(0), (None, None)
    for dtype in _WORDS:
        weight = _sample(dtype, device, drawn)
        for tokens in (1, _MATRIX):
            x = torch.randn(tokens, weight.in_features, generator=drawn, device="cpu").bfloat16().to(device)
            what = f"{dtype} weights and {tokens} tokens"
            _compare(what, paged_linear(x, weight, None), reference.paged_linear(x, weight))
            if dtype != "bfloat16":  # compiling takes time, and gated kernels of other weights differ in little
                continue
            for name in reference.ACTIVATIONS:
                found, expected = (of(x, weight, weight, name, biases) for of in (paged_gated, reference.paged_gated))
                _compare(f"{what} gated by {name}", found, expected)


def _compare(what: str, found: Tensor, expected: Tensor) -> None:
    if not bool((found - expected).float().norm() <= 1e-2 * expected.float().norm()):  # NaN is no match
        raise RuntimeError(f"{what}: other results than the reference has")


def _sample(dtype: str, device: str | torch.device, drawn: torch.Generator) -> DeviceWeight:
    """Two rows of blocks, one of them full, with partial blocks at the weight's edges and pages in shuffled order."""
    rows, cols, per_page = 16, 32, 2
    encoding, of_page = ENCODINGS[dtype], (4, per_page * rows * cols)
    if encoding.first_bits:
        size = per_page * encoding.number_bytes(rows, cols)
        blocks = torch.randint(0, 256, (4, size), generator=drawn, dtype=torch.uint8, device="cpu")
    else:
        values = torch.randn(of_page, generator=drawn, device="cpu")
        blocks = (values * 40).clamp(-127, 127).to(getattr(torch, dtype)).view(torch.uint8)
    scales = torch.rand(4, per_page * rows, generator=drawn, device="cpu").bfloat16().view(torch.uint8)

    def table(*entries: int) -> Tensor:
        return torch.tensor(entries, dtype=torch.int32, device=device)

    return DeviceWeight(
        arena=torch.cat([blocks, scales] if encoding.scaled else [blocks], 1).to(device),
        page_table=table(3, 0, 1),
        crow_indices=table(0, 3, 4),
        col_indices=table(0, 1, 2, 1),
        locations=table(4, 1, 0, 2),
        out_features=2 * rows - 3,
        in_features=3 * cols - 3,
        block_rows=rows,
        block_cols=cols,
        dtype=dtype,
    )


def _launch(kernel: Any, x: Tensor, factors: Sequence[tuple[DeviceWeight, Tensor | None]], **constants: Any) -> Tensor:
    weight = factors[0][0]
    rows, y = operands(x, weight.out_features)
    if y.numel():
        grid, tile = _tile(rows, weight)
        tables = [part for of, bias in factors for part in (*_tables(of), rows if bias is None else bias)]
        sizes = rows.numel() // weight.in_features, weight.out_features, weight.in_features
        with torch.cuda.device_of(x):
            kernel[grid](rows, y, *tables, *sizes, **constants, **tile)
    return y


def _tile(rows: Tensor, weight: DeviceWeight) -> tuple[tuple[int], dict[str, Any]]:
    """How many programs there are, and the constants of what one computes."""
    tokens = rows.numel() // weight.in_features
    steps = weight.block_cols // weight.encoding.neighbours
    outputs = min(weight.block_rows, 32)
    int4 = weight.dtype == "int4"
    matrix = tokens >= _MATRIX and outputs >= _MATRIX and (int4 or steps >= _MATRIX)
    words = 16 if int4 else 64  # of two or eight features
    if matrix and weight.dtype == "int8":
        words = min(words, steps)  # of one block, so that its scales can wait until its sums are there
    # bfloat16 is exact for int8 weights, too, before they are scaled; int4 ones are rounded to it once they are.
    # Triton's interpreter can't multiply it.
    bfloat16 = rows.dtype == torch.bfloat16 and weight.dtype != "float32" and not _INTERPRETED
    at_once = min(64 if matrix else 8, triton.next_power_of_2(tokens))
    constants = {
        "PAGE": weight.arena.shape[1],
        "PER_PAGE": weight.blocks_per_page,
        "BLOCK_ROWS": weight.block_rows,
        "BLOCK_COLS": weight.block_cols,
        "DTYPE": weight.dtype,
        "TOKENS": at_once,
        "OUTPUTS": outputs,
        "WORDS": words,
        "MATRIX": matrix,
        "BFLOAT16": bfloat16,
        "num_stages": 1,  # Triton 3.2, that of torch 2.6, can't compile loads by looked-up addresses in stages
    }
    programs = weight.grid[0] * (weight.block_rows // outputs) * triton.cdiv(tokens, at_once)
    return (programs,), constants


def _tables(weight: DeviceWeight) -> tuple[Any, ...]:
    size = int(weight.arena.shape[1])
    if size % 4:
        raise ValueError(f"arena: expected pages of a multiple of 4 bytes on a GPU, got {size}")
    words, scales = weight.arena.view(_WORDS[weight.dtype]), weight.arena.view(torch.bfloat16)
    tables = weight.page_table, weight.crow_indices, weight.col_indices, weight.locations
    return words, scales, *tables, weight.arena.shape[0]

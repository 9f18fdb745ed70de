"""The paged linear layer on a GPU: the checked call of Triton's kernels.

Nothing here waits for the device. Therefore a page that isn't in the arena can't raise an error: whatever depends on it
is NaN.

Importing this module fails with ImportError where Triton isn't installed; torch's builds for CUDA bring it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from weightpager.kernels.torch import reference
from weightpager.kernels.torch import triton as kernels
from weightpager.kernels.torch.device_weight import DeviceWeight
from weightpager.kernels.torch.operands import operands
from weightpager.page_dtype import ENCODINGS

_WORDS = {"float32": torch.float32, "bfloat16": torch.int32, "int8": torch.int16, "int4": torch.int32}
"""What an output's neighbouring features are read as, by the weight's dtype."""

READS = frozenset(_WORDS)
"""The pages' dtypes that these kernels read."""

_INTERPRETED = not isinstance(kernels.linear, triton.JITFunction)
"""Whether ``TRITON_INTERPRET`` was set when kernels were imported."""

_MATRIX = 16  # least tokens, outputs and words of a step that matrix units multiply


def paged_linear(x: Tensor, weight: DeviceWeight, bias: Tensor | None) -> Tensor:
    """``x @ W.T + bias``, accumulated in float32.

    ``x`` and ``bias`` have been checked by `weightpager.kernels.torch.paged_linear`. An output that needs a page which
    isn't in the arena is NaN.

    Args:
        x: [..., in_features].
        weight: the weight.
        bias: [out_features].

    Raises:
        ValueError: pages whose size is no multiple of four bytes.
    """
    return _launch(kernels.linear, x, [(weight, bias)], HAS_BIAS=bias is not None)


def paged_gated(
    x: Tensor,
    gate: DeviceWeight,
    weight: DeviceWeight,
    activation: str,
    biases: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """``activation(x @ gate.T + biases[0]) * (x @ W.T + biases[1])``, as `paged_linear`."""
    return _launch(
        kernels.gated,
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
    if dtype == "int4":
        blocks = torch.randint(0, 256, (4, of_page[1] // 2), generator=drawn, dtype=torch.uint8, device="cpu")
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
        tile = _tile(rows, weight)
        tables = [part for of, bias in factors for part in (*_tables(of), rows if bias is None else bias)]
        sizes = rows.numel() // weight.in_features, weight.out_features, weight.in_features
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            kernel[tile.grid](rows, y, *tables, *sizes, **constants, **tile.constants)
    return y


@dataclass(frozen=True)
class _Tile:
    """What one program computes, and how many there are."""

    grid: tuple[int]
    constants: dict[str, Any]


def _tile(rows: Tensor, weight: DeviceWeight) -> _Tile:
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
    return _Tile((programs,), constants)


def _tables(weight: DeviceWeight) -> tuple[Any, ...]:
    size = int(weight.arena.shape[1])
    if size % 4:
        raise ValueError(f"arena: expected pages of a multiple of 4 bytes on a GPU, got {size}")
    words, scales = weight.arena.view(_WORDS[weight.dtype]), weight.arena.view(torch.bfloat16)
    tables = weight.page_table, weight.crow_indices, weight.col_indices, weight.locations
    return words, scales, *tables, weight.arena.shape[0]

"""The paged kernel against torch's dense linear layer, and against what memory can deliver.

    python -m benchmarks.kernels --json kernels.json

Weights are cold: every call takes another one, and as many lie in between as fill a GiB. Dense, prepacked and paged
calls take turns, so that a machine that slows down slows them all.
"""

from __future__ import annotations

import json as json_file
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn.functional import linear

from weightpager import kernels
from weightpager.kernels import PagedWeight
from weightpager.kernels.cpu import read_memory

ROTATED = 1 << 30
"""Bytes of weights that lie between two uses of one."""

PAGE_BYTES = 1 << 16
SIGNATURES = 4
"""Sets of tasks that a weight's blocks belong to: a row's blocks lie in as many pages at least."""

SECONDS = 0.012
"""The least that is timed in one piece."""


@dataclass(frozen=True)
class Shape:
    """One layer of a model that people deploy: its widest."""

    model: str
    out_features: int
    in_features: int

    def __str__(self) -> str:
        return f"{self.model} {self.out_features}x{self.in_features}"


SHAPES = (
    Shape("MiniLM-L6", 1536, 384),
    Shape("SmolLM2-135M", 1536, 576),
    Shape("Qwen2.5-0.5B", 4864, 896),
    Shape("Llama-3.2-1B", 8192, 2048),
)
BLOCKS = ((16, 32), (64, 64))
SPARSITIES = (0.0, 0.5, 0.75)
TOKENS = (1, 8, 32, 128, 512)


@dataclass(frozen=True)
class Row:
    """One kernel at one shape; the keys of the JSON."""

    kernel: str
    isa: str
    shape: str
    block: str
    dtype: str
    sparsity: float
    tokens: int
    ms: float
    dense_ms: float
    prepacked_ms: float | None
    speedup: float
    gbps: float
    read_gbps: float


@dataclass(frozen=True)
class Variant:
    """What is compared with the dense layer."""

    block: tuple[int, int]
    dtype: torch.dtype
    sparsity: float


Call = Callable[[Tensor], Tensor]
"""A linear layer whose weight is another one at every call."""

Key = str | Variant | int
"""Who is timed: a dense layer, a paged one, or a plain read of so many bytes."""


def main(
    json: Annotated[Path, typer.Option(help="File to write the rows to.")],
    model: Annotated[list[str] | None, typer.Option(help="Only the shapes of these models.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Only these numbers of tokens.")] = None,
    repeats: Annotated[int, typer.Option(help="Times that everything is measured.")] = 5,
) -> None:
    """Measure the kernels."""
    rows = []
    arena = filled_arena()
    for shape in SHAPES:
        if not model or shape.model in model:
            for count in tokens or TOKENS:
                for row in measured(shape, count, arena, repeats):
                    rows.append(row)
                    typer.echo(line(row))
    json.write_text(json_file.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    typer.echo(summary(rows))


def filled_arena() -> Tensor:
    """A GiB of pages whose bytes are small numbers in bfloat16, float32 and int8 alike."""
    size = (1 << 22,)
    piece = torch.randint(0x3800, 0x3D00, size).short() | torch.randint(0, 2, size).short() << 15
    return piece.repeat(ROTATED // piece.nbytes).view(torch.uint8).view(-1, PAGE_BYTES)


def measured(shape: Shape, tokens: int, arena: Tensor, repeats: int) -> Iterator[Row]:
    """All variants at one shape and number of tokens."""
    base = torch.float32 if kernels.isa() in ("avx2", "generic") else torch.bfloat16
    x = torch.randn(tokens, shape.in_features).to(base)
    dense = dense_layer(shape, base)
    calls: dict[Key, Call] = {"dense": dense}
    if base == torch.bfloat16:
        calls["prepacked"] = prepacked_layer(shape, tokens)
    sizes: dict[Variant, int] = {}
    for block in BLOCKS:
        for dtype in (torch.bfloat16, torch.int8):
            for sparsity in SPARSITIES:
                variant = Variant(block, dtype, sparsity)
                calls[variant], size = paged_layer(shape, variant, arena)
                calls[size] = plain_read(arena, size)
                sizes[variant] = size
    seconds = timed(calls, x, repeats)
    for variant, size in sizes.items():
        ms, dense_ms = (1e3 * statistics.median(seconds[key]) for key in (variant, "dense"))
        ratio = statistics.median(a / b for a, b in zip(seconds["dense"], seconds[variant], strict=True))
        prepacked = 1e3 * statistics.median(seconds["prepacked"]) if "prepacked" in seconds else None
        yield Row(
            kernel="paged_linear",
            isa=kernels.isa(),
            shape=str(shape),
            block="x".join(map(str, variant.block)),
            dtype=str(variant.dtype).removeprefix("torch."),
            sparsity=variant.sparsity,
            tokens=tokens,
            ms=round(ms, 5),
            dense_ms=round(dense_ms, 5),
            prepacked_ms=None if prepacked is None else round(prepacked, 5),
            speedup=round(ratio, 3),
            gbps=round(size / ms / 1e6, 2),
            read_gbps=round(size / statistics.median(seconds[size]) / 1e9, 2),
        )


def timed(calls: dict[Key, Call], x: Tensor, repeats: int) -> dict[Key, list[float]]:
    """Seconds a call, each repeat a mean over some calls; the kernels take turns."""
    counts = {}
    for key, call in calls.items():
        start = time.perf_counter()
        call(x)
        call(x)
        counts[key] = max(1, int(2 * SECONDS / (time.perf_counter() - start)))
    found: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            start = time.perf_counter()
            for _ in range(counts[key]):
                call(x)
            found[key].append((time.perf_counter() - start) / counts[key])
    return found


def dense_layer(shape: Shape, dtype: torch.dtype) -> Call:
    """`torch.nn.functional.linear`."""
    size = shape.out_features * shape.in_features * dtype.itemsize
    values = torch.randn(1 << 22).to(dtype).repeat(-(-ROTATED // (dtype.itemsize << 22)))
    count = ROTATED // size
    weights = values[: count * size // dtype.itemsize].view(count, shape.out_features, shape.in_features)
    turns = cycle(weights.unbind())
    return lambda x: linear(x, next(turns))


def prepacked_layer(shape: Shape, tokens: int) -> Call:
    """What `torch.compile` makes of a frozen dense layer: oneDNN's own order of the weight, chosen for this shape."""
    size = shape.out_features * shape.in_features * 2
    weight = torch.randn(shape.out_features, shape.in_features).bfloat16()
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, tokens) for _ in range(min(200, ROTATED // size))]
    turns = cycle(packed)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, next(turns), None, "none", [], "")


def paged_layer(shape: Shape, variant: Variant, arena: Tensor) -> tuple[Call, int]:
    """Ours, and the bytes of its kept blocks."""
    rows, columns = -(-shape.out_features // variant.block[0]), -(-shape.in_features // variant.block[1])
    random = torch.Generator().manual_seed(0)
    kept = round((1 - variant.sparsity) * rows * columns)
    places = torch.randperm(rows * columns, generator=random)[:kept].sort().values
    signature = torch.randint(0, SIGNATURES, (kept,), generator=random)
    locations = torch.empty(kept, dtype=torch.int32)
    locations[torch.argsort(signature, stable=True)] = torch.arange(kept, dtype=torch.int32)
    block_bytes = variant.block[0] * variant.block[1] * variant.dtype.itemsize
    scale_bytes = 2 * variant.block[0] if variant.dtype == torch.int8 else 0
    pages = -(-kept // (PAGE_BYTES // (block_bytes + scale_bytes)))
    crow = torch.zeros(rows + 1, dtype=torch.int32)
    crow[1:] = torch.bincount(places // columns, minlength=rows).cumsum(0)
    slots = torch.randperm(len(arena), generator=random).int()
    weights = [
        PagedWeight(
            arena=arena, page_table=slots[first : first + pages], crow_indices=crow,
            col_indices=(places % columns).int(), locations=locations, out_features=shape.out_features,
            in_features=shape.in_features, block_rows=variant.block[0], block_cols=variant.block[1],
            dtype=variant.dtype,
        )
        for first in range(0, len(arena) - pages + 1, pages)
    ]  # fmt: skip
    turns = cycle(weights)
    return lambda x: kernels.paged_linear(x, next(turns)), kept * (block_bytes + scale_bytes)


def plain_read(arena: Tensor, size: int) -> Call:
    """Reads as many bytes, one after the other, and computes nothing."""
    flat = arena.view(-1)
    turns = cycle([flat[first : first + size] for first in range(0, len(flat) - size + 1, size)])

    def call(x: Tensor) -> Tensor:
        read_memory(next(turns))
        return x

    return call


def line(row: Row) -> str:
    """A row for people."""
    prepacked = "" if row.prepacked_ms is None else f" prepacked {row.prepacked_ms:9.4f}"
    return (
        f"{row.shape:24} {row.block:6} {row.dtype:9} {row.sparsity:4.0%} {row.tokens:4} tokens  {row.ms:9.4f} ms, "
        f"dense {row.dense_ms:9.4f}{prepacked}: {row.speedup:5.2f} x  {row.gbps:6.2f} of {row.read_gbps:6.2f} GB/s"
    )


def summary(rows: Sequence[Row]) -> str:
    """Median and worst speed-up by sparsity and tokens."""
    lines = []
    for dtype in ("bfloat16", "int8"):
        for sparsity in SPARSITIES:
            cells = []
            for tokens in TOKENS:
                found = [r.speedup for r in rows if (r.dtype, r.sparsity, r.tokens) == (dtype, sparsity, tokens)]
                cells.append(f"{statistics.median(found):5.2f} ({min(found):5.2f})" if found else "-")
            lines.append(f"{dtype:9} {sparsity:4.0%}  " + "  ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)

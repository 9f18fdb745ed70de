"""The paged kernel against torch's dense linear layer, and against what memory can deliver.

    python -m benchmarks.kernels --json kernels.json

Weights are cold: every call takes another one, and as many lie in between as fill a GiB. Dense, prepacked and paged
calls take turns, so that a machine that slows down slows them all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn.functional import linear

from benchmarks import row_file
from weightpager import kernels
from weightpager.blocks import BlockShape
from weightpager.kernels import PagedWeight
from weightpager.kernels.native import read_memory
from weightpager.kernels.torch import calls, paged_linear
from weightpager.page_dtype import block_bytes
from weightpager_lab.timing import in_turns, median_ms, ratio, repeated

PAGE_BYTES = 1 << 16

BLOCK = BlockShape(16, 32)
"""Of a weight, where no other shape is asked for."""

SIGNATURES = 4
"""Sets of tasks that a weight's blocks belong to: a row's blocks lie in as many pages at least."""


@dataclass(frozen=True)
class Variant:
    """How a weight is cut and what is kept of it."""

    block: BlockShape
    dtype: str
    sparsity: float

    @property
    def block_bytes(self) -> int:
        return block_bytes(self.block, self.dtype)


@dataclass(frozen=True)
class BlockTables:
    """Which blocks of a weight are kept, and where they lie in its pages.

    Attributes:
        variant: how the weight is cut.
        out_features, in_features: its size.
        crow_indices, col_indices, locations: as `PagedWeight` has them.
    """

    variant: Variant
    out_features: int
    in_features: int
    crow_indices: Tensor
    col_indices: Tensor
    locations: Tensor

    @classmethod
    def draw(cls, out_features: int, in_features: int, variant: Variant, seed: int = 0) -> BlockTables:
        """Random blocks in random signatures; in a page, a signature's blocks lie in the order of the weight."""
        rows, columns = -(-out_features // variant.block.rows), -(-in_features // variant.block.cols)
        random = torch.Generator().manual_seed(seed)
        kept = round((1 - variant.sparsity) * rows * columns)
        places = torch.randperm(rows * columns, generator=random)[:kept].sort().values
        signature = torch.randint(0, SIGNATURES, (kept,), generator=random)
        locations = torch.empty(kept, dtype=torch.int32)
        locations[torch.argsort(signature, stable=True)] = torch.arange(kept, dtype=torch.int32)
        crow = torch.zeros(rows + 1, dtype=torch.int32)
        crow[1:] = torch.bincount(places // columns, minlength=rows).cumsum(0)
        return cls(variant, out_features, in_features, crow, (places % columns).int(), locations)

    @property
    def bytes(self) -> int:
        return len(self.locations) * self.variant.block_bytes

    @property
    def pages(self) -> int:
        return -(-len(self.locations) // (PAGE_BYTES // self.variant.block_bytes))

    def weight(self, arena: Tensor, page_table: Tensor) -> PagedWeight:
        """The weight whose pages lie in these slots of an arena."""
        return PagedWeight(
            arena=arena.numpy(),
            page_table=page_table.numpy(),
            crow_indices=self.crow_indices.numpy(),
            col_indices=self.col_indices.numpy(),
            locations=self.locations.numpy(),
            out_features=self.out_features,
            in_features=self.in_features,
            block_rows=self.variant.block.rows,
            block_cols=self.variant.block.cols,
            dtype=self.variant.dtype,
        )


def filled_arena(bytes_: int) -> Tensor:
    """Pages whose bytes are small numbers in every dtype."""
    size = (1 << 22,)
    piece = torch.randint(0x3800, 0x3D00, size).short() | torch.randint(0, 2, size).short() << 15
    pages = -(-bytes_ // PAGE_BYTES)
    return piece.repeat(-(-pages * PAGE_BYTES // piece.nbytes)).view(torch.uint8).view(-1, PAGE_BYTES)[:pages]


@contextmanager
def paged_kernel_runs() -> Iterator[None]:
    """Assert that the kernel that `kernels.isa` names has run inside."""
    name = kernels.isa()
    before = calls().get(name, 0)
    yield
    assert calls().get(name, 0) > before, f"the paged kernel of {name} must have run"


ROTATED = 1 << 30
"""Bytes of weights that lie between two uses of one."""


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
BLOCKS = ("16x32", "64x64")
DTYPES = ("bfloat16", "int8", "int4")
SPARSITIES = (0.0, 0.5, 0.75)
TOKENS = (1, 8, 32, 128, 512)


@dataclass(frozen=True)
class Row:
    """One kernel at one shape; the keys of the JSON.

    `replace_rows` fills in the last three. Earlier rows have neither command nor commit.
    """

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
    gbps: float | None
    read_gbps: float | None
    cpu: str = ""
    command: str = ""
    commit: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, str, float, int]:
        return self.kernel, self.isa, self.shape, self.block, self.dtype, self.sparsity, self.tokens


Call = Callable[[Tensor], Tensor]
"""A linear layer whose weight is another one at every call."""

Key = str | Variant | int
"""Who is timed: a dense layer, a paged one, or a plain read of so many bytes."""


def main(
    json: Annotated[Path, typer.Option(help="File to write the rows to.")],
    model: Annotated[list[str] | None, typer.Option(help="Only the shapes of these models.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Only these numbers of tokens.")] = None,
    block: Annotated[list[str] | None, typer.Option(help="Blocks of these shapes, instead of 16x32 and 64x64.")] = None,
    repeats: Annotated[int, typer.Option(help="Times that everything is measured.")] = 5,
) -> None:
    """Measure the kernels."""
    rows, blocks = [], [BlockShape.parse(text) for text in block or BLOCKS]
    arena = filled_arena(ROTATED)
    for shape in SHAPES:
        if not model or shape.model in model:
            for count in tokens or TOKENS:
                for row in measured(shape, count, blocks, arena, repeats):
                    rows.append(row)
                    typer.echo(line(row))
    replace_rows(json, rows, "benchmarks.kernels")
    typer.echo(summary(rows))


def read(file: Path) -> list[Row]:
    return row_file.read(file, Row)


def replace_rows(file: Path, rows: Sequence[Row], module: str) -> None:
    """Put rows that a module's command has measured into a file, in place of those that measured the same.

    Rows of these kernels and instruction sets on another processor go, too: the page's tables would mix them.
    """
    origin = row_file.origin(module)
    measured_here = {(row.kernel, row.isa) for row in rows}
    known = read(file)
    kept = [row for row in known if row.cpu == origin["cpu"] or (row.kernel, row.isa) not in measured_here]
    if left := len(known) - len(kept):
        typer.echo(f"{left} rows of the same kernels on another processor were taken out of {file}", err=True)
    new = {row.key: row for row in [*kept, *(replace(row, **origin) for row in rows)]}
    row_file.write(file, new.values())


def measured(shape: Shape, tokens: int, blocks: Sequence[BlockShape], arena: Tensor, repeats: int) -> Iterator[Row]:
    """All variants at one shape and number of tokens."""
    base = torch.float32 if kernels.isa() in ("avx2", "generic") else torch.bfloat16
    x = torch.randn(tokens, shape.in_features).to(base)
    dense = dense_layer(shape, base)
    calls: dict[Key, Call] = {"dense": dense}
    if base == torch.bfloat16:
        calls["prepacked"] = prepacked_layer(shape, tokens)
    sizes: dict[Variant, int] = {}
    for block in blocks:
        for dtype in DTYPES:
            for sparsity in SPARSITIES:
                variant = Variant(block, dtype, sparsity)
                calls[variant], size = paged_layer(shape, variant, arena)
                calls[size] = plain_read(arena, size)
                sizes[variant] = size
    with paged_kernel_runs():
        seconds = in_turns({key: repeated(partial(call, x)) for key, call in calls.items()}, repeats, warm=0)
    for variant, size in sizes.items():
        ms, dense_ms = (median_ms(seconds[key]) for key in (variant, "dense"))
        prepacked = median_ms(seconds["prepacked"]) if "prepacked" in seconds else None
        yield Row(
            kernel="paged_linear",
            isa=kernels.isa(),
            shape=str(shape),
            block=str(variant.block),
            dtype=variant.dtype,
            sparsity=variant.sparsity,
            tokens=tokens,
            ms=round(ms, 5),
            dense_ms=round(dense_ms, 5),
            prepacked_ms=None if prepacked is None else round(prepacked, 5),
            speedup=round(ratio(seconds["dense"], seconds[variant]).median, 3),
            gbps=round(size / ms / 1e6, 2),
            read_gbps=round(size / median_ms(seconds[size]) / 1e6, 2),
        )


def dense_layer(shape: Shape, dtype: torch.dtype) -> Call:
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
    tables = BlockTables.draw(shape.out_features, shape.in_features, variant)
    slots = torch.randperm(len(arena), generator=torch.Generator().manual_seed(0)).int()
    starts = range(0, len(arena) - tables.pages + 1, tables.pages)
    turns = cycle([tables.weight(arena, slots[first : first + tables.pages]) for first in starts])
    return lambda x: paged_linear(x, next(turns)), tables.bytes


def plain_read(arena: Tensor, size: int) -> Call:
    """Reads as many bytes, one after the other, and computes nothing."""
    flat = arena.view(-1)
    turns = cycle([flat[first : first + size] for first in range(0, len(flat) - size + 1, size)])

    def call(x: Tensor) -> Tensor:
        read_memory(next(turns).numpy(), torch.get_num_threads())
        return x

    return call


def line(row: Row) -> str:
    prepacked = "" if row.prepacked_ms is None else f" prepacked {row.prepacked_ms:9.4f}"
    return (
        f"{row.shape:24} {row.block:6} {row.dtype:9} {row.sparsity:4.0%} {row.tokens:4} tokens  {row.ms:9.4f} ms, "
        f"dense {row.dense_ms:9.4f}{prepacked}: {row.speedup:5.2f} x  {row.gbps:6.2f} of {row.read_gbps:6.2f} GB/s"
    )


def summary(rows: Sequence[Row]) -> str:
    """Median and worst speed-up by sparsity and tokens."""
    lines = []
    for dtype in DTYPES:
        for sparsity in SPARSITIES:
            cells = []
            for tokens in TOKENS:
                found = [r.speedup for r in rows if (r.dtype, r.sparsity, r.tokens) == (dtype, sparsity, tokens)]
                cells.append(f"{statistics.median(found):5.2f} ({min(found):5.2f})" if found else "-")
            lines.append(f"{dtype:9} {sparsity:4.0%}  " + "  ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)

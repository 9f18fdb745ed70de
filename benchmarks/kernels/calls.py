"""What a paged layer costs besides its product: the call, and the change between our threads' work and torch's.

python -m benchmarks.kernels.calls --json kernels.json
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.nn.functional import linear

from benchmarks.kernels.__main__ import (
    BLOCK,
    PAGE_BYTES,
    BlockTables,
    Row,
    Variant,
    filled_arena,
    paged_kernel_runs,
    replace_rows,
)
from weightpager import kernels
from weightpager.kernels.torch import paged_linear
from weightpager.nn.linear import PagedLinear
from weightpager.runtime.paging.residency import TaskGate
from weightpager_lab.timing import in_turns, repeated

MOST_MS = 0.015
"""Asked for: what a module may add to its kernel."""


def main(json: Annotated[Path, typer.Option(help="File to put the rows into.")]) -> None:
    """Measure calls."""
    with torch.inference_mode(), paged_kernel_runs():
        rows = [module_overhead(), alternating()]
    added = 1e3 * (rows[0].ms - rows[0].dense_ms)
    typer.echo(f"a module adds {added:.1f} us to its kernel (asked for: at most {1e3 * MOST_MS:.0f})")
    typer.echo(
        f"our product and torch's in turn take {rows[1].ms:.4f} ms, and {rows[1].dense_ms:.4f} in all when each runs "
        f"by itself: {rows[1].speedup:.2f} x"
    )
    replace_rows(json, rows, "benchmarks.kernels.calls")


def module_overhead() -> Row:
    """A module over a weight that has nothing to multiply; ``dense_ms`` is the bare kernel."""
    layer, x = paged_layer(64, 64, 0.5), torch.randn(1, 64).bfloat16()
    bare, whole = seconds(lambda: paged_linear(x, layer.paged_weight), lambda: layer(x))
    return row("module", 64, 64, 1, whole, bare)


def alternating() -> Row:
    """A paged and a dense layer in turn; ``dense_ms`` is the sum of both by themselves.

    Two sets of threads would keep the cores busy waiting while the other set works.
    """
    layer, x = paged_layer(1024, 1024, 0.5), torch.randn(16, 1024).bfloat16()
    weight = torch.randn(1024, 1024).bfloat16()

    def both() -> None:
        layer(x)
        linear(x, weight)

    ours, theirs, turns = seconds(lambda: layer(x), lambda: linear(x, weight), both)
    return row("alternating", 1024, 1024, 16, turns, ours + theirs)


def paged_layer(out_features: int, in_features: int, sparsity: float) -> PagedLinear:
    """A layer of random numbers in an arena of its own, behind the gate of an active task."""
    tables = BlockTables.draw(out_features, in_features, Variant(BLOCK, "bfloat16", sparsity))
    arena = filled_arena(tables.pages * PAGE_BYTES)
    gate = TaskGate("benchmark")
    gate.hold()
    return PagedLinear(tables.weight(arena, torch.arange(tables.pages).int()), None, 0, gate)


def seconds(*calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call; they take turns."""
    found = in_turns(dict(enumerate(map(repeated, calls))), 15)
    return [statistics.median(times) for times in found.values()]


def row(kernel: str, out_features: int, in_features: int, tokens: int, ours: float, theirs: float) -> Row:
    return Row(
        kernel=kernel,
        isa=kernels.isa(),
        shape=f"{out_features}x{in_features}",
        block="16x32",
        dtype="bfloat16",
        sparsity=0.5,
        tokens=tokens,
        ms=round(1e3 * ours, 5),
        dense_ms=round(1e3 * theirs, 5),
        prepacked_ms=None,
        speedup=round(theirs / ours, 3),
        gbps=None,
        read_gbps=None,
    )


if __name__ == "__main__":
    typer.run(main)

"""What huge pages do to kernels that read the arena, and what giving slots back costs then.

    python -m benchmarks.kernels.huge_pages

Weights are cold, and the calls take turns, as in `benchmarks.kernels`.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.kernels.proof import paged_kernel_runs
from benchmarks.kernels.run import DTYPES, ROTATED, SHAPES, Call, Key, Shape, timed
from benchmarks.kernels.synthetic import BLOCK, PAGE_BYTES, BlockTables, Variant, filled_arena
from weightpager.kernels.torch import paged_linear
from weightpager.machine.memory import resident_memory, size_field
from weightpager.runtime.memory.host_arena import Arena

SLOTS = ROTATED // 2 // PAGE_BYTES


@dataclass(frozen=True)
class Row:
    """One shape: GB/s on either arena, and how much faster huge pages are, pair by pair, with quartiles."""

    shape: str
    dtype: str
    small_gbps: float
    huge_gbps: float
    speedup: float
    low: float
    high: float


def main(
    repeats: Annotated[int, typer.Option(min=2, help="Times that everything is measured.")] = 15,
    threads: Annotated[int, typer.Option(help="Of the kernels.")] = 2,
) -> None:
    """Measure kernels at one token on an arena with huge pages and one without."""
    torch.set_num_threads(threads)
    arenas = {kind: Arena(SLOTS, SLOTS, PAGE_BYTES, huge_pages=kind == "huge") for kind in ("small", "huge")}
    for arena in arenas.values():
        arena.pages[:] = filled_arena(SLOTS * PAGE_BYTES).numpy()
    ratios = []
    for shape in SHAPES:
        for dtype in DTYPES:
            tables = BlockTables.draw(shape.out_features, shape.in_features, Variant(BLOCK, dtype, 0.5))
            row = measured(shape, tables, arenas, repeats)
            ratios.append(row.speedup)
            typer.echo(json.dumps(asdict(row)))
    typer.echo(json.dumps({"median_speedup": statistics.median(ratios)} | filled() | half_released(arenas["huge"])))


def measured(shape: Shape, tables: BlockTables, arenas: dict[str, Arena], repeats: int) -> Row:
    """One shape on both arenas."""
    calls: dict[Key, Call] = {kind: paged(tables, arena) for kind, arena in arenas.items()}
    with paged_kernel_runs():
        seconds = timed(calls, torch.randn(1, shape.in_features).bfloat16(), repeats)
    pairs = [small / huge for small, huge in zip(seconds["small"], seconds["huge"], strict=True)]
    small, huge = (round(tables.bytes / statistics.median(seconds[kind]) / 1e9, 2) for kind in ("small", "huge"))
    low, median, high = (round(bound, 3) for bound in statistics.quantiles(pairs, n=4))
    return Row(str(shape), tables.variant.dtype, small, huge, median, low, high)


def paged(tables: BlockTables, arena: Arena) -> Call:
    """A paged layer that is another one at every call, its pages in slots by chance."""
    slots = torch.randperm(SLOTS, generator=torch.Generator().manual_seed(0)).int()
    starts = range(0, SLOTS - tables.pages + 1, tables.pages)
    pages = torch.from_numpy(arena.pages)
    turns = cycle([tables.weight(pages, slots[first : first + tables.pages]) for first in starts])
    return lambda x: paged_linear(x, next(turns))


def filled(slots: int = SLOTS // 4) -> dict[str, float]:
    """Seconds to fill new arenas, 128 MiB each: the machine clears memory as it gives it."""
    content = bytes(PAGE_BYTES)
    found: dict[str, list[float]] = {"fill_small_s": [], "fill_huge_s": []}
    for _ in range(9):
        for kind, seconds in found.items():
            arena = Arena(slots, slots, PAGE_BYTES, huge_pages=kind == "fill_huge_s")
            start = time.perf_counter()
            for slot in range(slots):
                arena.content(slot)[:] = content
            seconds.append(time.perf_counter() - start)
    return {kind: round(statistics.median(seconds), 4) for kind, seconds in found.items()}


def half_released(arena: Arena) -> dict[str, int]:
    """MiB that every second slot holds, and what the process and the machine get back when they are released."""
    before, free = resident_mib(), free_mib()
    arena.release(range(0, SLOTS, 2))
    held = SLOTS * PAGE_BYTES >> 21
    return {"released_mib": held, "resident_fell_mib": before - resident_mib(), "free_rose_mib": free_mib() - free}


def resident_mib() -> int:
    """Of this process."""
    return (resident_memory() or 0) >> 20


def free_mib() -> int:
    """Of the machine; others' doings are in it."""
    return (size_field(Path("/proc/meminfo").read_text(encoding="ascii"), "MemFree") or 0) >> 20


if __name__ == "__main__":
    typer.run(main)

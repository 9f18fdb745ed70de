"""How large pages and blocks should be: what a switch reads, how long it takes, and what the page cache makes of it.

    python -m benchmarks.switching.granularity --json docs/results.json

Random weights of a real layer's shape, a few layers of it. Direct reads are what weightpager does; the same reads
through the page cache show what read-ahead adds, and what a warm cache would hide.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import row_file
from benchmarks.report import results_file
from benchmarks.report.results_file import GranularityRow
from weightpager.blocks import BlockShape
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.bundle.report.page_statistics import mean_overlap, overlap, page_fill
from weightpager.config import EngineConfig, cache_dir
from weightpager.doctor.cold import cold_read
from weightpager.engine import Engine
from weightpager.store import LocalStore, StorageModel, all_switches, coalesce
from weightpager_lab.contest.measuring import bytes_from_storage
from weightpager_lab.contest.prompt import prompt
from weightpager_lab.contest.rivals.torch_rival import tensors
from weightpager_lab.synthetic_bundle import Recipe, bundle_of, few_layers
from weightpager_lab.timing import doubt, in_turns, median_ms, seconds_of, time_switch

PAGES = (16 << 10, 64 << 10, 256 << 10, 1 << 20)
BLOCKS = (BlockShape(8, 16), BlockShape(16, 32), BlockShape(32, 64), BlockShape(64, 64))
USUAL_PAGE, USUAL_BLOCK = 64 << 10, BlockShape(16, 32)
PAIRS, FORWARDS = 6, 10


def main(
    json: Annotated[Path, typer.Option(help="File of results to put the rows into.")],
    tasks: Annotated[int, typer.Option(help="Of each bundle.")] = 6,
) -> None:
    """Measure page sizes and block shapes."""
    folder = cache_dir() / "benchmarks" / "granularity"
    rows = []
    for recipe in recipes(tasks):
        rows.append(measure(recipe, bundle_of(recipe, folder, typer.echo)))
        typer.echo(rows[-1].model_dump_json(exclude={"command", "commit"}))
    found = results_file.read(json)
    results_file.write(json, found.model_copy(update={"granularity": rows}))


def recipes(tasks: int) -> Iterator[Recipe]:
    """Every page size with the usual block, and every block with the usual page."""
    for page_bytes in PAGES:
        yield few_layers(USUAL_BLOCK, page_bytes, tasks)
    for block in BLOCKS:
        if block != USUAL_BLOCK:
            yield few_layers(block, USUAL_PAGE, tasks)


def measure(recipe: Recipe, bundle: Bundle) -> GranularityRow:
    """One bundle's row."""
    costs = all_switches(bundle, StorageModel())[:PAIRS]
    files = [bundle.path / name for name in bundle.manifest.page_file_names()]
    with Engine(bundle, EngineConfig(backend="torch")) as engine, cold_read(files) as proof:
        direct = [time_switch(engine, cost.from_task, cost.to_task, 1).seconds for cost in costs if cost.from_task]
        forward = _forward(engine, bundle)
    readings = [_buffered(bundle, cost.from_task or "", cost.to_task) for cost in costs]
    return GranularityRow(
        model=recipe.name,
        tasks=recipe.tasks,
        sparsity=1 - recipe.density,
        overlap=round(mean_overlap(overlap(bundle)), 2),
        block=bundle.manifest.block,
        page_bytes=bundle.page_bytes,
        pages=len(bundle.pages),
        page_fill=round(page_fill(bundle), 4),
        planned_bytes=round(statistics.fmean(cost.bytes for cost in costs)),
        kept_bytes=round(statistics.fmean(_needed(bundle, cost.from_task or "", cost.to_task) for cost in costs)),
        reads=round(statistics.fmean(cost.reads for cost in costs), 1),
        direct_ms=_ms(direct),
        buffered_ms=_ms([reading.seconds for reading in readings]),
        buffered_bytes=round(statistics.fmean(reading.delivered for reading in readings)),
        cached_ms=_ms([reading.again for reading in readings]),
        forward_ms=_ms(forward),
        table_bytes=footprint(bundle).tables,
        doubt=doubt(proof) or next((reading.doubt for reading in readings if reading.doubt), ""),
        command=row_file.command("benchmarks.switching.granularity"),
        commit=row_file.commit(),
        cpu=row_file.cpu(),
    )


def _forward(engine: Engine, bundle: Bundle) -> list[float]:
    task = next(iter(bundle.tasks))
    module, inputs = engine.activate(task), tensors(bundle.task(task), prompt(bundle, task, 0))
    with torch.inference_mode():
        return in_turns({task: partial(seconds_of, lambda: module(**inputs))}, FORWARDS)[task]


@dataclass(frozen=True)
class _Reading:
    """A switch's reads through the page cache: seconds, bytes that storage delivered, and seconds of them once more.

    ``doubt`` says why the first ones weren't cold; empty if they were.
    """

    seconds: float
    delivered: int
    again: float
    doubt: str


def _buffered(bundle: Bundle, a: str, b: str) -> _Reading:
    have = set(bundle.pages_of(a).tolist())
    missing = [page for page in bundle.pages_of(b).tolist() if page not in have]
    memory = memoryview(bytearray(len(missing) * bundle.page_bytes))
    store = LocalStore(bundle, direct=False)
    files = [bundle.path / name for name in bundle.manifest.page_file_names()]
    try:
        with cold_read(files) as proof:
            before = bytes_from_storage()
            cold = _read(store, bundle, missing, memory)
            delivered = bytes_from_storage() - before
            warm = _read(store, bundle, missing, memory)
    finally:
        store.close()
    return _Reading(cold, delivered, warm, proof.reason)


def _read(store: LocalStore, bundle: Bundle, pages: list[int], memory: memoryview) -> float:
    size = bundle.page_bytes

    def reads() -> None:
        place = 0
        for run in coalesce(pages, store.span, size):
            store.read(run.first, [memory[(place + i) * size : (place + i + 1) * size] for i in range(run.count)])
            place += run.count

    return seconds_of(reads)


def _needed(bundle: Bundle, a: str, b: str) -> int:
    have = set(bundle.kept_locations(a).tolist())
    return sum(location not in have for location in bundle.kept_locations(b).tolist()) * bundle.block_bytes


def _ms(seconds: list[float]) -> float:
    return round(median_ms(seconds), 3)


if __name__ == "__main__":
    typer.run(main)

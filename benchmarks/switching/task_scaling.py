"""From two tasks to thirty-two: what must be in memory, what a switch loads, and how long that takes.

python -m benchmarks.switching.task_scaling --json docs/results.json
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import row_file
from benchmarks.report import results_file
from benchmarks.report.results_file import ScalingRow
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig, cache_dir
from weightpager.engine import Engine
from weightpager_lab.contest.figures import budget_for, facts
from weightpager_lab.contest.measuring import circuit
from weightpager_lab.synthetic_bundle import Recipe, bundle_of, many_tasks
from weightpager_lab.timing import spread

COUNTS = (2, 4, 8, 16, 32)
MOST_SWITCHES = 120


def main(json: Annotated[Path, typer.Option(help="File of results to put the rows into.")]) -> None:
    """Measure bundles of more and more tasks."""
    folder = cache_dir() / "benchmarks" / "scaling"
    rows = []
    for count in COUNTS:
        recipe = many_tasks(count)
        rows.append(measure(recipe, bundle_of(recipe, folder, typer.echo)))
        typer.echo(rows[-1].model_dump_json(exclude={"command", "commit"}))
    found = results_file.read(json)
    results_file.write(json, found.model_copy(update={"scaling": rows}))


def measure(recipe: Recipe, bundle: Bundle) -> ScalingRow:
    """One bundle's row: switches with room for one task."""
    known = facts(bundle, random_weights=True)
    walk = circuit(list(bundle.tasks))[: MOST_SWITCHES + 1]
    with Engine(bundle, EngineConfig(budget_for(bundle, 1.0))) as engine:
        for task in walk:
            engine.activate(task)
            engine.evict()
        switches = engine.report().switches[1:]
    seconds = spread([switch.seconds for switch in switches])
    assert seconds is not None
    return ScalingRow(
        model=recipe.name,
        tasks=recipe.tasks,
        sparsity=round(known.sparsity, 4),
        overlap=round(known.mean_overlap, 4),
        page_bytes=known.page_bytes,
        task_bytes=known.largest_task_bytes,
        stored_bytes=known.stored_bytes,
        separate_bytes=known.kept_bytes,
        table_bytes=known.table_bytes,
        switch_bytes=round(statistics.fmean(switch.bytes for switch in switches)),
        switch_ms=round(1e3 * seconds["mean"], 3),
        switch_p99_ms=round(1e3 * seconds["p99"], 3),
        command=row_file.command("benchmarks.switching.task_scaling"),
        commit=row_file.commit(),
        cpu=row_file.cpu(),
    )


if __name__ == "__main__":
    typer.run(main)

"""``eval``: the tasks' metrics on the held-out data that they were compiled with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from weightpager.cli import output
from weightpager.cli.completion import task_names
from weightpager.cli.options import Backend, Budget, BundlePath, Dtype, Json, Quiet, Rows
from weightpager.cli.progress import progress
from weightpager.cli.running.engine import opened

if TYPE_CHECKING:
    from weightpager.bundle.report.compile_report import TaskScore


def eval_(
    bundle: BundlePath,
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="Only these tasks.", autocompletion=task_names)
    ] = None,
    budget: Budget = None,
    rows: Rows = None,
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure each task's metric through the engine, on the held-out data that it was compiled with.

    The dense model's metric was measured when the bundle was compiled. Held-out data in Parquet needs
    `weightpager[compile]`.

    Example: `weightpager eval assistant.bundle --task spam`
    """
    from weightpager.evaluation.measure import measure

    with opened(bundle, task or (), budget, dtype, rows, backend) as engine, progress(quiet or json) as stages:
        measured = measure(engine, task or list(engine.bundle.tasks), stages)
    if json:
        output.print_json({"tasks": measured})
        return
    output.table(
        str(bundle),
        ["task", "metric", "dense", "sparse", "items"],
        [line for row in measured for line in _lines(row)],
    )
    output.explain("brackets")
    if any(row.dense is None for row in measured):
        output.say("note: '-' where the held-out data is no longer what the dense model was measured on.")


def _lines(row: TaskScore) -> list[list[object]]:
    """A task's lines of the table: its metric, then the others that it chooses."""
    dense, sparse = output.measured(row.dense, row.dense_interval), output.measured(row.sparse, row.sparse_interval)
    others = [
        ["", other.metric, output.measured(other.dense, None), output.measured(other.sparse, None), row.items]
        for other in row.others
    ]
    return [[row.name, row.metric, dense, sparse, row.items], *others]

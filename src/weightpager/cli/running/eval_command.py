"""``eval``: the tasks' metrics on the held-out data that they were compiled with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightpager.cli import output
from weightpager.cli.completion import task_names
from weightpager.cli.options import Backend, Budget, BundlePath, Dtype, Json, Quiet, Rows
from weightpager.cli.progress import progress
from weightpager.cli.running.engine import opened
from weightpager.errors import ConfigError, shown

if TYPE_CHECKING:
    from weightpager.bundle.report.compile_report import TaskScore


def eval_(
    bundle: BundlePath,
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="Only these tasks.", autocompletion=task_names)
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=FILE", help="Where a task's held-out data is on this machine; may be repeated."),
    ] = None,
    budget: Budget = None,
    rows: Rows = None,
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure each task's metric through the engine, on the held-out data that it was compiled with.

    The data is looked for by the name that the bundle has for it, beside the bundle and in the working directory, and
    where the machine that compiled it remembers it; `--data` says where it is otherwise.
    The dense model's metric was measured when the bundle was compiled. Held-out data in Parquet needs
    `weightpager[compile]`.

    Example: `weightpager eval assistant.bundle --task spam --data spam=spam.test.jsonl`
    """
    from weightpager.evaluation.measure import measure

    moved = dict(map(_moved, data or ()))
    with opened(bundle, task or (), budget, dtype, rows, backend) as engine, progress(quiet or json) as stages:
        for name in moved:
            engine.bundle.task(name)
        measured = measure(engine, task or list(engine.bundle.tasks), stages, moved)
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


def _moved(data: str) -> tuple[str, Path]:
    """A task's name, and where its data is."""
    name, equals, file = data.partition("=")
    if not (name and equals and file):
        raise ConfigError(f"eval: expected '--data TASK=FILE', found {shown(data)}")
    return name, Path(file)


def _lines(row: TaskScore) -> list[list[object]]:
    """A task's lines of the table: its metric, then the others that it chooses."""
    dense, sparse = output.measured(row.dense, row.dense_interval), output.measured(row.sparse, row.sparse_interval)
    others = [
        ["", other.metric, output.measured(other.dense, None), output.measured(other.sparse, None), row.items]
        for other in row.others
    ]
    return [[row.name, row.metric, dense, sparse, row.items], *others]

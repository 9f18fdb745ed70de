"""``run``, ``eval`` and ``export``: what a device does with a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import check_fits
from weightpager.cli import output
from weightpager.cli.completion import task_names
from weightpager.cli.options import Backend, Budget, BundlePath, Dtype, Json, Quiet, Rows, extra
from weightpager.cli.progress import progress
from weightpager.config import parse_size, stated_size
from weightpager.errors import BudgetError, ConfigError

if TYPE_CHECKING:
    from weightpager.bundle.report.compile_report import TaskScore
    from weightpager.engine import Engine

TaskName = Annotated[
    str, typer.Option("--task", "-t", help="Name of a task.", show_default=False, autocompletion=task_names)
]


def run(
    bundle: BundlePath,
    task: TaskName,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]…", help="Texts; one a line from standard input if absent or '-'."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", "-i", metavar="FILE", help="Image, for tasks that read images; may be repeated."),
    ] = None,
    budget: Budget = None,
    rows: Rows = None,
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Length of a generated text at most; as the task states, else 32.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Run a task on texts, or on images, under a memory budget.

    Example: `weightpager run assistant.bundle --task spam --budget 4MiB "You won a prize"`

    Images: `weightpager run drive.bundle --task traffic-light --image frame.png`; needs `weightpager[images]`.
    """
    with _opened(bundle, task, budget, dtype, rows, backend) as engine:
        entry = engine.bundle.task(task)
        inputs = _images(task, image, texts) if entry.takes_images else _inputs(task, image, texts)
        predictions = engine.predict(task, inputs, max_new_tokens=max_new_tokens)
        report = engine.report()
    if json:
        output.print_json({"task": task, "predictions": predictions, "engine": report})
        return
    for prediction in predictions:
        score = "" if prediction.score is None else f"  ({prediction.score:.1%})"
        output.say(f"{prediction.label}{score}")
    load = report.switches[-1]
    output.hint(
        f"loaded {output.size(load.bytes)} in {output.milliseconds(load.load_seconds)}; "
        f"weights {output.size(report.memory.total)} of a budget of {output.size(report.budget)}; "
        f"backend {report.backend}, kernel {report.kernel}"
    )


def _opened(bundle: Path, task: str, budget: str | None, dtype: str, rows: str | None, backend: str) -> Engine:
    """An engine. If the budget holds no task at all, the error tells what the wanted task needs."""
    from weightpager.engine import Engine

    try:
        return Engine.from_pretrained(bundle, budget=budget, rows=rows, dtype=dtype, backend=backend)
    except BudgetError:
        if budget is not None:
            check_fits(Bundle.open(bundle), task, parse_size(budget), dtype, stated_size(rows, "rows"))
        raise


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
    from weightpager.engine import Engine
    from weightpager.evaluation.measure import measure

    opened = Engine.from_pretrained(bundle, budget=budget, rows=rows, dtype=dtype, backend=backend)
    with opened as engine, progress(quiet or json) as stages:
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


def export(
    bundle: BundlePath,
    task: TaskName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to create.", show_default=False)],
    json: Json = False,
) -> None:
    """Export a task as an ordinary dense-with-zeros transformers directory. Needs `weightpager[torch]`.

    Example: `weightpager export assistant.bundle --task spam --out spam-hf/`
    """
    with extra("torch"):
        from weightpager.backends.torch.export import export_task

    written = export_task(Bundle.open(bundle), task, out)
    if json:
        output.print_json({"task": task, "out": str(written)})
    else:
        output.say(f"{written}: {task}, for transformers' from_pretrained")


def _images(task: str, images: list[Path] | None, texts: list[str] | None) -> list[str]:
    """The images to run on."""
    if texts or not images:
        found = "a text" if texts else "none"
        raise ConfigError(f"run: expected '--image FILE', since {task} reads images, found {found}")
    return [str(path) for path in images]


def _inputs(task: str, images: list[Path] | None, texts: list[str] | None) -> list[str]:
    """The texts to run on: the arguments; without any, or with a lone ``-``, the lines of standard input."""
    if images:
        raise ConfigError(f"run: expected texts, since {task} reads texts, found '--image'")
    if texts == ["-"]:
        texts = None
    if not texts and sys.stdin.isatty():
        output.hint("texts, one a line; Ctrl-D ends them")
    try:
        # Some editors put a byte order mark before a file; it is no part of the first text.
        inputs = texts or sys.stdin.read().removeprefix("\ufeff").removesuffix("\n").split("\n")
        for text in inputs:
            text.encode()  # an argument that isn't UTF-8 arrives as lone surrogates
    except UnicodeError as error:
        raise ConfigError(f"run: expected UTF-8 text: {error}") from error
    except OSError as error:  # nohup lets nothing be read
        why = error.strerror or error
        raise ConfigError(f"run: cannot read standard input: {why}; give texts as arguments") from error
    # A blank text among others goes to the task, so that lines match. A model that makes no token of it refuses it.
    if not any(text.strip() for text in inputs):
        raise ConfigError("run: expected a text as argument or on standard input")
    return inputs

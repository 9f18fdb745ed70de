"""Output of commands: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from weightpager.bundle.report.advice import Advice, few_items
from weightpager.bundle.report.choice import Choice
from weightpager.bundle.report.compile_report import DENSE, CompileReport
from weightpager.cli.legend import legend
from weightpager.config import format_enough, format_size

_WIDE = None if sys.stdout.isatty() else 160
"""Columns of a table that goes to a file or a pipe; rich would cut it at 80."""

size, enough = format_size, format_enough
"""``size``: as people read it. ``enough``: of what is needed, rounded up, in a form that options take."""

console = Console(soft_wrap=True, width=_WIDE)
errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def print_json(value: Any) -> None:
    """Print one JSON document on standard output. A number that isn't finite becomes null, since JSON has none."""
    plain = json.loads(json.dumps(value, default=_plain), parse_constant=lambda _: None)
    typer.echo(json.dumps(plain, indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, BaseModel):
        return value.model_dump()
    return str(value)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table. All columns but the first hold numbers. Without any column name there is no header."""
    view = Table(title=escape(title), title_justify="left", title_style="bold", show_header=any(columns))
    for number, column in enumerate(columns):
        view.add_column(escape(column), justify="left" if number == 0 else "right")
    for row in rows:
        view.add_row(*(escape(_cell(cell)) for cell in row))
    console.print(view)


def _cell(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def facts(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print named facts, one a line, aligned on the left: they are words, not numbers."""
    view = Table(title=escape(title), title_justify="left", title_style="bold", show_header=False)
    for name, fact in rows:
        view.add_row(escape(name), escape(fact))
    console.print(view)


_NOT_COMPARED = {
    "none": "not compared with anything simpler: controls skipped (compare: none)",
    "few": "not compared with anything simpler: controls skipped, which so few held-out items could tell nothing of "
    "(--compare dense trains them all the same)",
}


def scores(title: str, report: CompileReport) -> None:
    """Print the tasks' metrics, with the intervals that hold the true value in 95 of 100 cases."""
    equal = next((control for control in report.controls if control.name == DENSE), None)
    longer = [] if equal is None else ["dense, trained as long"]
    rows = []
    for task in report.tasks:
        trained = [] if equal is None else [measured(equal.scores[task.name], equal.intervals.get(task.name))]
        dense, sparse = measured(task.dense, task.dense_interval), measured(task.sparse, task.sparse_interval)
        rows.append([task.name, task.metric, dense, *trained, sparse, f"{task.density:.2f}", task.items])
    table(title, ["task", "metric", "dense", *longer, "sparse", "density", "held-out items"], rows)
    if any(task.sparse_interval is not None for task in report.tasks):
        explain("brackets")


def advice(found: Advice | None, report: CompileReport) -> None:
    """Print the ways to serve the tasks by memory, and what to use in words; or that it was not to be compared."""
    if found is None:
        for line in (_NOT_COMPARED.get(report.compare or ""), few_items(report)):
            if line:
                say(line)
        return
    rows = [
        [choice.name, enough(choice.resident_bytes), size(choice.switch_bytes), _interval(f"{choice.loss:.1f}", choice)]
        for choice in found.choices
    ]
    table("what else could do the job", ["", "paged weights in memory", "per switch", "loss against dense"], rows)
    say(found.words)


def _interval(loss: str, choice: Choice) -> str:
    return loss if choice.interval is None else f"{loss} ({_ends(choice.interval, 1)})"


def _ends(interval: tuple[float, float], digits: int) -> str:
    """The ends of an interval. They are infinite if there was one text only, which says nothing of others."""
    if not all(map(math.isfinite, interval)):
        return "too few texts to tell"
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def matrix(title: str, names: Sequence[str], cells: Sequence[Sequence[object]]) -> None:
    """Print a square matrix, a row for each task that a switch leaves; in parts if it is wider than the output."""
    corner = "from \\ to"
    widths = [_width([name, *(row[number] for row in cells)]) for number, name in enumerate(names)]
    room = console.width - _width([corner, *names]) - 1
    for number, part in enumerate(_parts(widths, room)):
        rows = [[name, *row[part]] for name, row in zip(names, cells, strict=True)]
        table("" if number else title, [corner, *names[part]], rows)


def _width(cells: Sequence[object]) -> int:
    """The width of a column, with the blanks around its cells and the line beside it."""
    return max(len(str(cell)) for cell in cells) + 3


def _parts(widths: Sequence[int], room: int) -> list[slice]:
    """Runs of columns that fit into the room side by side; each has one column at least."""
    starts, used = [0], 0
    for number, width in enumerate(widths):
        if used and used + width > room:
            starts.append(number)
            used = 0
        used += width
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(widths)], strict=True)]


def say(text: str) -> None:
    """Print a line on standard output as it is: nothing in it is markup."""
    console.print(text, markup=False, highlight=False)


def explain(*words: str) -> None:
    """Print a line that explains words of the output before it."""
    console.print(legend(*words), style="dim", markup=False, highlight=False)


def hint(text: str) -> None:
    """Print something that is good to know, on standard error."""
    errors.print(text, style="dim")


def next_step(command: str) -> None:
    """Print what people usually do next; on standard error, so that it is no part of the command's output."""
    errors.print(f"next: {command}", style="dim")


def measured(value: float | None, interval: tuple[float, float] | None) -> str:
    """A metric as people read it, with its interval if that is known."""
    if value is None:
        return "-"
    return f"{value:.4f}" if interval is None else f"{value:.4f} ({_ends(interval, 3)})"


def milliseconds(seconds: float) -> str:
    """A duration as people read it."""
    return f"{seconds * 1e3:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


def bandwidth(bytes_per_second: float) -> str:
    """Bytes per second as data sheets give them, in powers of ten."""
    unit, scale = ("GB/s", 1e9) if bytes_per_second >= 1e9 else ("MB/s", 1e6)
    return f"{bytes_per_second / scale:.1f} {unit}"

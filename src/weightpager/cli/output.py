"""Output of commands: tables for people, JSON for programs."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from weightpager.config import format_enough, format_size
from weightpager.errors import ConfigError
from weightpager.logs import logging_by
from weightpager.machine.paths import has_directory

if TYPE_CHECKING:
    from rich.console import Console

MEANINGS = {
    "affinity": "a request goes to the replica that lacks the fewest bytes of its task, weighed against its queue",
    "alignment": "λ, what a block loaded per switch costs when blocks are chosen; the more, the more tasks share",
    "arena": "memory for pages",
    "brackets": "95 % confidence interval",
    "duality gap": "how far the choice of blocks may be from the best one",
    "overlap": "share of a task's bytes that the task before it keeps too",
    "oracle": "knows the whole trace; what is needed last goes first. No lower bound: another routing may be better",
    "over-read": "share of a task's pages that it doesn't use",
    "private": "a task's own, such as its head",
    "in vain": "prefetched, and gone again before any use",
    "there in time": "of the pages that had to be loaded, the share that prefetching had brought before the switch",
    "without a wait": "switches that found all their pages in memory, prefetched or still there from before",
    "woke": "switches that opened a bundle, which had left memory as a whole",
}
"""Words of the architecture's table are explained as that has them, only shorter."""


def legend(*words: str) -> str:
    """A line that explains the words."""
    return "; ".join(f"{word}: {MEANINGS[word]}" for word in words)


_WIDE = 160
"""Columns of a table that goes to a file or a pipe; rich would cut it at 80."""

size, enough = format_size, format_enough
"""``size``: as people read it. ``enough``: of what is needed, rounded up, in a form that options take."""


@cache
def console() -> Console:
    """Standard output, for tables. Rich is imported only where something is styled."""
    from rich.console import Console

    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)


@cache
def errors() -> Console:
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def loading_torch() -> AbstractContextManager[object]:
    """A block of imports that bring torch, which takes seconds: said on standard error, if that is a terminal."""
    return errors().status("load torch and transformers") if sys.stderr.isatty() else nullcontext()


def print_json(value: Any, *, one_line: bool = False) -> None:
    """Print one JSON document on standard output; on one line where further documents follow."""
    typer.echo(to_json(value, one_line=one_line))


def to_json(value: Any, *, one_line: bool = False) -> str:
    """A JSON document. A number that isn't finite becomes null, since JSON has none."""
    plain = json.loads(json.dumps(value, default=_plain), parse_constant=lambda _: None)
    return json.dumps(plain, indent=None if one_line else 1, allow_nan=False)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    for dump in ("model_dump", "plain"):  # a model of pydantic's, which few commands have; a document of a bundle's
        if hasattr(value, dump):
            return getattr(value, dump)()
    return str(value)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table. All columns but the first hold numbers. Without any column name there is no header."""
    from rich.markup import escape
    from rich.table import Table

    view = Table(title=escape(title), title_justify="left", title_style="bold", show_header=any(columns))
    for number, column in enumerate(columns):
        view.add_column(escape(column), justify="left" if number == 0 else "right")
    for row in rows:
        view.add_row(*(escape(_cell(cell)) for cell in row))
    console().print(view)


def _cell(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def facts(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print named facts, one a line, aligned on the left: they are words, not numbers."""
    from rich.markup import escape
    from rich.table import Table

    view = Table(title=escape(title), title_justify="left", title_style="bold", show_header=False)
    for name, fact in rows:
        view.add_row(escape(name), escape(fact))
    console().print(view)


def matrix(title: str, names: Sequence[str], cells: Sequence[Sequence[object]]) -> None:
    """Print a square matrix, a row for each task that a switch leaves; in parts if it is wider than the output."""
    corner = "from \\ to"
    widths = [_width([name, *(row[number] for row in cells)]) for number, name in enumerate(names)]
    room = console().width - _width([corner, *names]) - 1
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
    typer.echo(text)


def explain(*words: str) -> None:
    """Print a line that explains words of the output before it."""
    console().print(legend(*words), style="dim", markup=False, highlight=False)


def hint(text: str) -> None:
    """Print something that is good to know, on standard error."""
    _dim(text)


def next_step(command: str) -> None:
    """Print what people usually do next; on standard error, so that it is no part of the command's output."""
    _dim(f"next: {command}")


def _dim(text: str) -> None:
    typer.secho(text, err=True, dim=True, color=False if os.environ.get("NO_COLOR") else None)


def measured(value: float | None, interval: tuple[float, float] | None) -> str:
    """A metric as people read it, with its interval if that is known."""
    if value is None:
        return "-"
    return f"{value:.4f}" if interval is None else f"{value:.4f} ({ends(interval, 3)})"


def ends(interval: tuple[float, float], digits: int) -> str:
    """The ends of an interval. They are infinite if there was one text only, which says nothing of others."""
    if not all(map(math.isfinite, interval)):
        return "too few texts to tell"
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


def bandwidth(bytes_per_second: float) -> str:
    """Bytes per second as data sheets give them, in powers of ten."""
    unit, scale = ("GB/s", 1e9) if bytes_per_second >= 1e9 else ("MB/s", 1e6)
    return f"{bytes_per_second / scale:.1f} {unit}"


def check_writable(option: str, path: Path) -> None:
    """Check that a file can be written, as far as that shows without touching it.

    Raises:
        ConfigError: it can't be written; the text starts with ``option``.
    """
    target = Path(os.path.realpath(path))
    if not has_directory(target.parent):
        raise ConfigError(f"{option}: expected a directory to write into, but {target.parent} does not exist")
    try:
        target.lstat()
    except FileNotFoundError:
        place = target.parent
    except OSError as error:
        raise _refused(option, path, error) from error
    else:
        place = target
    if has_directory(target):
        raise ConfigError(f"{option}: expected a file to write, found the directory {path}; name a file in it")
    if not os.access(place, os.W_OK):
        raise ConfigError(f"{option}: expected a file to write, but {place} may not be written to; choose another")


def write_file(option: str, path: Path, text: str) -> None:
    """Write a file that `check_writable` has let pass. Raises `ConfigError` if the storage refused it."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _refused(option, path, error) from error


def _refused(option: str, path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{option}: cannot write {path}: {error.strerror or error}; choose another file")


_LOGGERS = ("weightpager.compiler", "weightpager.task_data", "weightpager.ray")


@contextmanager
def notes(quiet: bool = False) -> Iterator[None]:
    """Show what the block logs on standard error, each line once; if ``quiet``, warnings only."""
    console, level = _Console(), logging.WARNING if quiet else logging.INFO
    with ExitStack() as shown:
        for name in _LOGGERS:
            shown.enter_context(logging_by(console, name, level))
        yield


class _Console(logging.Handler):
    """Prints lines; above the progress bars, if there are any. Data that are read twice are warned of once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line, style = record.getMessage(), "yellow" if record.levelno >= logging.WARNING else None
        if line not in self._said:
            self._said.add(line)
            errors().print(line, style=style)

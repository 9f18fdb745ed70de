"""How the code is lived in: files a room, lines a file, lines a function.

    python -m benchmarks.house --json house.json
    python -m benchmarks.house --against 94ab5ab
    python -m benchmarks.house --read-path

A room is a folder with Python files. Nothing here is a limit: the figures show where it gets crowded.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from statistics import median, quantiles
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import row_file
from weightpager.engine import Engine
from weightpager.runtime.budget import smallest_budget
from weightpager_lab.synthetic_bundle import bundle_of, long_context

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("src", "benchmarks", "tests")
FULL_ROOM, LONG_FILE = 14, 300
"""Above these a room or a file is named."""

Sources = Mapping[PurePosixPath, str]


@dataclass(frozen=True)
class House:
    """What is counted at one commit, or in the work tree.

    Attributes:
        lines: of Python, by part of the repository.
        rooms: files of each room.
        fullest: files in the fullest room.
        median_room: files in the median room.
        files: lines of every file of ``src`` and ``benchmarks`` that is longer than `LONG_FILE`.
        functions: median, 95th percentile and most lines of a function of ``src``.
        longest: the ten longest functions of ``src``, with their lines.
    """

    lines: dict[str, int]
    rooms: dict[str, int]
    fullest: int
    median_room: float
    files: dict[str, int]
    functions: tuple[float, float, int]
    longest: dict[str, int]

    @property
    def product_lines(self) -> int:
        """Lines of Python outside the tests."""
        return self.lines["src"] + self.lines["benchmarks"]


def of_work_tree() -> Sources:
    """What git knows of the work tree, as it stands."""
    names = _git("ls-files", "--cached", "--others", "--exclude-standard", "--", *PARTS).splitlines()
    paths = (PurePosixPath(name) for name in names if (ROOT / name).exists())
    return {path: (ROOT / path).read_text(encoding="utf-8") for path in paths if _counts(path)}


def of_commit(commit: str) -> Sources:
    """What a commit holds."""
    names = _git("ls-tree", "-r", "--name-only", commit, "--", *PARTS).splitlines()
    return {path: _git("show", f"{commit}:{path}") for path in map(PurePosixPath, names) if _counts(path)}


def measure(sources: Sources) -> House:
    """Count."""
    lengths = {path: len(text.splitlines()) for path, text in sources.items()}
    rooms = Counter(str(path.parent) for path in sources)
    functions = {
        f"{path}:{name}": lines
        for path, text in sources.items()
        if path.parts[0] == "src"
        for name, lines in _functions(ast.parse(text))
    }
    by_length = sorted(functions.items(), key=lambda item: -item[1])
    return House(
        {part: sum(lines for path, lines in lengths.items() if path.parts[0] == part) for part in PARTS},
        dict(rooms.most_common()),
        max(rooms.values()),
        median(rooms.values()),
        {str(path): lines for path, lines in lengths.items() if lines > LONG_FILE and path.parts[0] != "tests"},
        (median(functions.values()), quantiles(functions.values(), n=20)[-1], by_length[0][1]),
        dict(by_length[:10]),
    )


def main(
    json: Annotated[Path | None, typer.Option(help="File that takes the figures.")] = None,
    against: Annotated[str | None, typer.Option(help="Commit to compare with.")] = None,
    read_path: Annotated[bool, typer.Option(help="Print what a switch goes through instead.")] = False,
) -> None:
    """Count the work tree's rooms, files and functions."""
    if read_path:
        with tempfile.TemporaryDirectory() as folder:
            path = bundle_of(long_context(2), Path(folder), typer.echo).path
            shown = {"calls to a read": calls_to_a_read(path), "files of a small switch": files_of_a_small_switch(path)}
            for title, lines in shown.items():
                typer.echo(f"{title}:")
                for number, one in enumerate(lines, 1):
                    typer.echo(f"{number:3} {one}")
        return
    house = measure(of_work_tree())
    before = measure(of_commit(against)) if against is not None else None
    _show(house, before)
    if json is not None:
        found = {"house": asdict(house), "against": against, "before": asdict(before) if before is not None else None}
        row_file.write_json(json, found)


def calls_to_a_read(bundle: Path) -> list[str]:
    """The calls from `Engine.activate` to the one that hands a load's reads on: to the native module, or to threads."""
    calls: list[str] = []

    def watch(frame: FrameType | None, event: str, _argument: object) -> None:
        if event != "call" or frame is None or _name(frame) not in ("native_reads.py: start", "thread_reads.py: start"):
            return
        calls.clear()  # who was asked before could not
        while frame is not None and "engine.py: activate" not in calls:
            calls.append(_name(frame))
            frame = frame.f_back

    with Engine.from_pretrained(bundle) as engine:
        task = next(iter(engine.bundle.tasks))
        engine.module(task)
        sys.setprofile(watch)
        try:
            engine.activate(task, wait=False)  # as large switches go; small ones read in this thread
        finally:
            sys.setprofile(None)
    return calls[::-1]


SMALL_SWITCH_IN_CPP = (
    "csrc/load/own_reads_bindings.cpp",
    "csrc/load/own_reads.cpp",
    "csrc/load/read.cpp",
    "csrc/load/ring_device.cpp",
    "csrc/load/blake3.cpp",
)
"""What Python can't watch: where a small switch's pages are read and hashed."""


def files_of_a_small_switch(bundle: Path) -> list[str]:
    """The product's files with code that runs in a switch which reads little, in place of another task, after others.

    Args:
        bundle: of two or more tasks, which differ by at most 1 MiB.
    """
    found: dict[str, None] = {}

    def watch(frame: FrameType | None, event: str, _argument: object) -> None:
        if event == "call" and frame is not None and (name := _product_file(frame)) is not None:
            found[name] = None

    with Engine.from_pretrained(bundle) as engine:
        first, second, *_ = engine.bundle.tasks
        engine.set_budget(max(smallest_budget(engine.bundle, name) for name in (first, second)))
        for name in (first, second, first, second):
            engine.activate(name)
        sys.setprofile(watch)
        try:
            engine.activate(first)
        finally:
            sys.setprofile(None)
        assert engine.last_switch is not None
        assert engine.last_switch.reads > 0, "expected tasks of which just one fits"
    return [*found, *SMALL_SWITCH_IN_CPP]


def _product_file(frame: FrameType) -> str | None:
    path = Path(frame.f_code.co_filename)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT / "src" / "weightpager") else None


def _name(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}"


def _show(house: House, before: House | None) -> None:
    console = Console(soft_wrap=True)
    table = Table("", "now", *(["before"] if before is not None else []))
    houses = [house] if before is None else [house, before]
    for name, figure in _FIGURES.items():
        table.add_row(name, *(figure(one) for one in houses))
    console.print(table)
    for path, count in house.rooms.items():
        if count > FULL_ROOM:
            console.print(f"full room: {path}, {count} files")
    for path, lines in house.files.items():
        console.print(f"long file: {path}, {lines} lines")
    for name, lines in list(house.longest.items())[:3]:
        console.print(f"long function: {name}, {lines} lines")


_FIGURES: Mapping[str, Callable[[House], str]] = {
    "lines outside the tests": lambda house: f"{house.product_lines:,}",
    "lines of tests": lambda house: f"{house.lines['tests']:,}",
    "rooms": lambda house: str(len(house.rooms)),
    "files in the fullest room": lambda house: str(house.fullest),
    "files in the median room": lambda house: f"{house.median_room:g}",
    f"files of more than {LONG_FILE} lines": lambda house: str(len(house.files)),
    "lines of a function: median / 95 % / most": lambda house: " / ".join(f"{figure:g}" for figure in house.functions),
}


def _functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, (node.end_lineno or node.lineno) - node.body[0].lineno + 1 - _docstring(node)


def _docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(node, clean=False) is None:
        return 0
    return (node.body[0].end_lineno or node.body[0].lineno) - node.body[0].lineno + 1


def _counts(path: PurePosixPath) -> bool:
    return path.suffix == ".py"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    typer.run(main)

"""How the code is lived in: files, folders, lines and words, as they are and as they are asked for.

    python -m benchmarks.house --json house.json
    python -m benchmarks.house --against f6b04d14
    python -m benchmarks.house --read-path

Nothing here is a limit. Lines are Python's; words are those of Markdown.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from statistics import median, quantiles
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import row_file
from weightpager.engine import Engine
from weightpager_lab.synthetic_bundle import bundle_of, small
from weightpager_lab.timing import leave_only

ROOT = Path(__file__).resolve().parents[1]
LONG_FILE, FEWEST_FILES = 450, 4
"""Above and below these a file or a folder is named."""

PARTS = ("src", "benchmarks", "tests", "docs", "csrc", "README.md", "pyproject.toml")
GENERATED = ("api", "cli", "results", "accuracy", "kernels-measured", "box")
"""Pages that a command writes."""

Sources = Mapping[PurePosixPath, str]


@dataclass(frozen=True)
class House:
    """What is counted at one commit, or in the work tree.

    Attributes:
        files, folders: of ``src``.
        small_folders: of ``src``, with fewer than `FEWEST_FILES` files and no folder in them.
        product_lines: of ``src/weightpager``, what shows and measures aside.
        measuring_lines: of the laboratory, limits and benchmarks.
        test_lines: of the tests.
        file_median: lines of a file of ``src``.
        long_files: of ``src`` and ``benchmarks``, with their lines.
        functions: median, 95th percentile and most lines of a function of ``src``.
        longest: the three longest functions, with their lines.
        contracts: on imports.
        project_lines: of pyproject.toml.
        readme_lines, readme_words: of the README.
        docs_words: of pages that people write.
        decisions_words: of ``docs/decisions``.
    """

    files: int
    folders: int
    small_folders: list[str]
    product_lines: int
    measuring_lines: int
    test_lines: int
    file_median: float
    long_files: dict[str, int]
    functions: tuple[float, float, int]
    longest: dict[str, int]
    contracts: int
    project_lines: int
    readme_lines: int
    readme_words: int
    docs_words: int
    decisions_words: int


@dataclass(frozen=True)
class SwitchPath:
    """Files of ours that a small switch passes through: Python that is called, and C++ that it needs."""

    python: list[str]
    native: list[str]


def of_work_tree() -> Sources:
    names = _git("ls-files", "--cached", "--others", "--exclude-standard", "--", *PARTS).splitlines()
    paths = (PurePosixPath(name) for name in names if (ROOT / name).is_file())
    return {path: (ROOT / path).read_text(encoding="utf-8") for path in paths if _counts(path)}


def of_commit(commit: str) -> Sources:
    names = _git("ls-tree", "-r", "--name-only", commit, "--", *PARTS).splitlines()
    return {path: _git("show", f"{commit}:{path}") for path in map(PurePosixPath, names) if _counts(path)}


def measure(sources: Sources) -> House:
    code = {path: text for path, text in sources.items() if path.suffix == ".py"}
    lengths = {path: len(text.splitlines()) for path, text in code.items()}
    src = {path: lines for path, lines in lengths.items() if path.parts[0] == "src"}
    folders = Counter(path.parent for path in src)
    inner = {folder.parent for folder in folders}
    functions = {f"{path}:{name}": lines for path in src for name, lines in _functions(ast.parse(code[path]))}
    by_length = sorted(functions.items(), key=lambda item: -item[1])
    product = sum(lines for path, lines in src.items() if not _measures(path))
    project, readme = (sources.get(PurePosixPath(name), "") for name in ("pyproject.toml", "README.md"))
    pages = {
        path: len(text.split()) for path, text in sources.items() if path.parts[0] == "docs" and path.suffix == ".md"
    }
    return House(
        files=len(src),
        folders=len(folders),
        small_folders=[str(each) for each, n in folders.items() if n < FEWEST_FILES and each not in inner],
        product_lines=product,
        measuring_lines=sum(src.values()) - product + _lines(lengths, "benchmarks"),
        test_lines=_lines(lengths, "tests"),
        file_median=median(src.values()),
        long_files={
            str(path): lines for path, lines in lengths.items() if lines > LONG_FILE and path.parts[0] != "tests"
        },
        functions=(median(functions.values()), quantiles(functions.values(), n=20)[-1], by_length[0][1]),
        longest=dict(by_length[:3]),
        contracts=project.count("[[tool.importlinter.contracts]]"),
        project_lines=len(project.splitlines()),
        readme_lines=len(readme.splitlines()),
        readme_words=len(readme.split()),
        docs_words=sum(n for path, n in pages.items() if len(path.parts) == 2 and path.stem not in GENERATED),
        decisions_words=sum(n for path, n in pages.items() if path.parts[1] == "decisions"),
    )


def main(
    json: Annotated[Path | None, typer.Option(help="File that takes the figures.")] = None,
    against: Annotated[str | None, typer.Option(help="Commit to compare with.")] = None,
    read_path: Annotated[bool, typer.Option(help="Print the calls from a task to a read instead.")] = False,
) -> None:
    """Count the work tree's files, lines and words, and the files that a small switch passes through."""
    with tempfile.TemporaryDirectory() as folder:
        few_pages = replace(small().stored_in("int4"), name="house", density=0.1)
        bundle = bundle_of(few_pages, Path(folder), lambda _: None).path
        if read_path:
            for number, call in enumerate(calls_to_a_read(bundle), 1):
                typer.echo(f"{number:3} {call}")
            return
        path = files_of_a_switch(bundle)
    house = measure(of_work_tree())
    before = measure(of_commit(against)) if against is not None else None
    _show(house, before, path)
    if json is not None:
        found = {"house": asdict(house), "switch": asdict(path), "against": against}
        row_file.write_json(json, found | {"before": None if before is None else asdict(before)})


def files_of_a_switch(bundle: Path) -> SwitchPath:
    """Those that a switch passes through which reads a few pages in the calling thread.

    C++ isn't watched: what binds a name that these Python files use counts, and what that includes.
    """
    package = ROOT / "src" / "weightpager"
    python: set[Path] = set()

    def watch(frame: FrameType, event: str, _argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(package):
            python.add(path)

    with Engine.from_pretrained(bundle) as engine:
        first, second, *_ = engine.bundle.tasks
        engine.activate(second)  # what is built at first use isn't part of a switch
        leave_only(engine, first)
        sys.setprofile(watch)
        try:
            engine.activate(second)
        finally:
            sys.setprofile(None)
    names = {name for path in python for name in re.findall(r"\b_native\.(\w+)", path.read_text(encoding="utf-8"))}
    units = {path: path.read_text(encoding="utf-8") for path in (ROOT / "csrc").rglob("*.[ch]pp")}
    native = {path for path, text in units.items() if any(f'(module, "{name}")' in text for name in names)}
    todo = list(native)
    while todo:
        unit = todo.pop()
        included = [(unit.parent / name).resolve() for name in re.findall(r'#include "(.+?)"', units[unit])]
        twins = {path.with_suffix(".cpp") for path in included if not path.stem.endswith("bindings")}
        new = {path for path in (*included, *twins) if path in units} - native
        native |= new
        todo += new
    return SwitchPath(
        sorted(str(path.relative_to(package)) for path in python),
        sorted(str(path.relative_to(ROOT)) for path in native if path.suffix == ".cpp"),
    )


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


def _name(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}"


def _show(house: House, before: House | None, path: SwitchPath) -> None:
    console = Console(soft_wrap=True)
    table = Table("", *(["before"] if before is not None else []), "now", "asked")
    now = _figures(house) | {
        "files on the path of a small switch, Python and C++": (f"{len(path.python)} + {len(path.native)}", "≤ 22")
    }
    then = {} if before is None else _figures(before)
    for name, (figure, asked) in now.items():
        table.add_row(name, *([then.get(name, ("–", ""))[0]] if before is not None else []), figure, asked)
    console.print(table)
    for folder in house.small_folders:
        console.print(f"folder of fewer than {FEWEST_FILES} files: {folder}")
    for name, lines in (house.long_files | house.longest).items():
        console.print(f"long: {name}, {lines} lines")


def _figures(house: House) -> dict[str, tuple[str, str]]:
    """By name, what was counted and what is asked."""
    return {
        "files and folders of src": (f"{house.files}, {house.folders}", "< 450, < 60"),
        f"leaf folders of fewer than {FEWEST_FILES} files": (str(len(house.small_folders)), "0"),
        "lines of src/weightpager": (f"{house.product_lines:,}", "< 55,000"),
        "lines of laboratory, limits and benchmarks": (f"{house.measuring_lines:,}", ""),
        "lines of all three and src/weightpager": (f"{house.product_lines + house.measuring_lines:,}", "< 74,000"),
        "lines of tests": (f"{house.test_lines:,}", ""),
        "median lines of a file of src": (f"{house.file_median:g}", "≥ 120"),
        "lines of a function: median, 95 %, most": (", ".join(f"{each:g}" for each in house.functions), ""),
        "import contracts": (str(house.contracts), "between rooms"),
        "lines of pyproject.toml": (str(house.project_lines), "< 350"),
        "lines and words of the README": (f"{house.readme_lines}, {house.readme_words:,}", "≤ 120, ≤ 900"),
        "words of hand-written docs": (f"{house.docs_words:,}", "≤ 25,000"),
        "words of decisions": (f"{house.decisions_words:,}", "≤ 15,000"),
    }


def _functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            start, end = node.body[0].lineno, node.end_lineno or node.lineno
            if ast.get_docstring(node, clean=False) is not None:
                start = (node.body[0].end_lineno or start) + 1
            yield node.name, end - start + 1


def _lines(lengths: Mapping[PurePosixPath, int], part: str) -> int:
    return sum(lines for path, lines in lengths.items() if path.parts[0] == part)


def _measures(path: PurePosixPath) -> bool:
    """Whether a file of ``src`` shows or measures, where that lies now or where it lay."""
    return path.parts[1] != "weightpager" or path.parts[2] in ("lab", "limits")


def _counts(path: PurePosixPath) -> bool:
    return path.suffix in (".py", ".md") or path.name == "pyproject.toml"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    typer.run(main)

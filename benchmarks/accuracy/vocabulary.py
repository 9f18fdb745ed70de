"""What a smaller vocabulary costs: domain D's dense model with all tokens and with some, trained alike.

python -m benchmarks.accuracy.vocabulary --tokens 16384
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.accuracy.effort import effort_of
from benchmarks.accuracy.run import task_file
from benchmarks.accuracy.study import Study
from weightpager.cli import output
from weightpager.cli.progress import progress
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.vocabulary import trim
from weightpager.config import cache_dir
from weightpager.progress import Progress


def main(tokens: Annotated[int, typer.Option(help="Of the smaller vocabulary.")] = 16384) -> None:
    """Train both, and print each task's metric on held-out data."""
    folder = cache_dir() / "benchmarks"
    whole = task_file("D", effort_of("D", quick=False), seed=0)
    with progress() as told:
        small = whole.model_copy(update={"model": _trimmed(whole, tokens, folder, told)})
        before, after = (
            Study(file, folder / name, told).base_scores()
            for file, name in ((whole, "accuracy-D-0-full"), (small, f"accuracy-D-0-{tokens}-tokens"))
        )
    rows = [[task, f"{before[task]:.3f}", f"{after[task]:.3f}", f"{after[task] / before[task]:.2f}"] for task in before]
    mean = sum(after[task] / before[task] for task in before) / len(before)
    output.table(
        "held-out data", ["task", "all tokens", f"{tokens} tokens", "share"], [*rows, ["mean", "", "", f"{mean:.3f}"]]
    )


def _trimmed(whole: TaskFile, tokens: int, folder: Path, told: Progress) -> Path:
    path = folder / f"smollm2-{tokens}-tokens"
    if not path.exists():
        trim(whole, path, tokens, told)
    return path


if __name__ == "__main__":
    typer.run(main)

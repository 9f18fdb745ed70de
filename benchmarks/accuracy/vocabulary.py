"""What a smaller vocabulary costs: domain D's dense model with all tokens and with some, trained alike.

python -m benchmarks.accuracy.vocabulary --tokens 16384
"""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.accuracy.__main__ import task_file
from benchmarks.accuracy.settings import effort_of
from benchmarks.accuracy.study import Study
from weightpager.cli import output
from weightpager.cli.progress import progress
from weightpager.compiler.trim import trim
from weightpager.config import cache_dir


def main(
    tokens: Annotated[int, typer.Option(help="Of the smaller vocabulary.")] = 16384,
    quick: Annotated[bool, typer.Option(help="Shows that it runs.")] = False,
) -> None:
    """Train both, and print each task's metric on held-out data."""
    folder, effort = cache_dir() / "benchmarks", "quick" if quick else "full"
    whole = task_file("D", effort_of("D", quick=quick), seed=0)
    with progress() as told:
        path = folder / f"smollm2-{effort}-{tokens}-tokens"
        if not path.exists():
            trim(whole, path, tokens, told)
        small = whole.model_copy(update={"model": path})
        before, after = (
            Study(file, folder / name, told).base_scores()
            for file, name in ((whole, f"accuracy-D-0-{effort}"), (small, f"accuracy-D-0-{effort}-{tokens}-tokens"))
        )
    shares = {task: _share(after[task], before[task]) for task in before}
    rows = [[task, f"{before[task]:.3f}", f"{after[task]:.3f}", f"{share:.2f}"] for task, share in shares.items()]
    rows.append(["mean", "", "", f"{sum(shares.values()) / len(shares):.3f}"])
    output.table("held-out data", ["task", "all tokens", f"{tokens} tokens", "share"], rows)


def _share(after: float, before: float) -> float:
    """NaN where the whole vocabulary has nothing right."""
    return after / before if before else float("nan")


if __name__ == "__main__":
    typer.run(main)

"""The learning-rate search behind ``benchmarks.accuracy``: dense, ours and one shared mask, on validation data.

python -m benchmarks.accuracy.learning_rate
"""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.accuracy.effort import EFFORTS
from benchmarks.accuracy.run import task_file
from benchmarks.accuracy.settings import ALIGNMENT
from benchmarks.accuracy.study import Setting, Study
from weightpager.cli import output
from weightpager.cli.progress import progress
from weightpager.config import cache_dir

RATES = (1e-4, 2e-4, 4e-4)
FRACTION = 0.25


def main(
    steps: Annotated[int, typer.Option(help="Of each training.")] = 360,
    rate: Annotated[list[float] | None, typer.Option(help="Only these rates.")] = None,
) -> None:
    """Train with each rate, and print the mean metric of the six tasks' validation data."""
    rows = []
    with progress() as told:
        file = task_file("A", EFFORTS["A"], seed=0)
        study = Study(file, cache_dir() / "benchmarks" / "learning-rate", told).on_validation()
        for value in rate or RATES:
            spec = EFFORTS["A"].finetune(0).model_copy(update={"steps": steps, "learning_rate": value})
            found = [study.scores(study.trained_on(spec))]
            for method, alignment in (("ours", ALIGNMENT), ("shared_mask", float("inf"))):
                found.append(dict(study.sparse(Setting(method, FRACTION, FRACTION, alignment, spec)).scores))
            rows.append([f"{value:g}", *(f"{sum(scores.values()) / len(scores):.4f}" for scores in found)])
    output.table(f"validation data, {steps} steps", ["rate", "dense", f"ours, a = {FRACTION}", "shared mask"], rows)


if __name__ == "__main__":
    typer.run(main)

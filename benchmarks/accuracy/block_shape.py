"""How large blocks should be: what each shape costs in accuracy, in bytes to load and in tables, on validation data.

    python -m benchmarks.accuracy.block_shape --block 8x8 --block 16x32 --block 64x64

What it costs in time ``benchmarks.kernels`` and ``benchmarks.switching.granularity`` say. A run that was stopped goes
on where it was, and goes on from what ``benchmarks.accuracy`` has trained.
"""

from __future__ import annotations

from statistics import fmean
from typing import Annotated, Literal

import typer

from benchmarks.accuracy.effort import EFFORTS
from benchmarks.accuracy.run import task_file
from benchmarks.accuracy.settings import ALIGNMENT
from benchmarks.accuracy.study import Setting, Study
from weightpager.blocks import BlockShape
from weightpager.cli import output
from weightpager.cli.progress import progress
from weightpager.compiler.task_file.sections import RecoverMethod, RecoverSpec
from weightpager.config import cache_dir

METHODS = {"ours": ALIGNMENT, "shared_mask": float("inf")}


def main(
    block: Annotated[list[str], typer.Option(help="Rows x columns of a shape to measure.")],
    domain: Annotated[Literal["A", "B"], typer.Option(help="A: MiniLM; B: SmolLM2.")] = "A",
    fraction: Annotated[float, typer.Option(help="Of the blocks that a task keeps.")] = 0.15,
    recover: Annotated[RecoverMethod, typer.Option(help="How accuracy is won back.")] = "finetune",
    method: Annotated[list[str] | None, typer.Option(help="Only these methods.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is trained.")] = 0,
) -> None:
    """Choose blocks of each shape, win accuracy back, and print the mean metric of the tasks' validation data."""
    shapes, effort = [BlockShape.parse(text) for text in block], EFFORTS[domain]
    spec = effort.finetune(seed) if recover == "finetune" else RecoverSpec(method=recover)
    rows = []
    with progress() as told:
        folder = cache_dir() / "benchmarks" / f"accuracy-{domain}-{seed}-full"
        study = Study(task_file(domain, effort, seed), folder, told).on_validation()
        for shape in shapes:
            cut = study.cut_into(shape)
            for name in method or METHODS:
                found = cut.sparse(Setting(name, fraction, fraction, METHODS[name], spec))
                sizes = fmean(found.switch_bytes.values()), found.table_bytes
                rows.append(
                    [
                        shape,
                        name,
                        f"{fmean(found.scores.values()):.4f}",
                        f"{found.overlap:.3f}",
                        *map(output.size, sizes),
                    ]
                )
                typer.echo(" ".join(map(str, rows[-1])))
    header = ["block", "method", "mean metric", "overlap", "a switch loads", "tables"]
    output.table(f"validation data, {fraction:g} of the blocks, {recover}", header, rows)


if __name__ == "__main__":
    typer.run(main)

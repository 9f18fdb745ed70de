"""What tasks may drop while each keeps a share of the dense model's metric: layers, half-layers and blocks.

``python -m benchmarks.accuracy.kept --json docs/kept.json --domain A`` compiles the tasks of a domain by each method.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks import row_file
from benchmarks.accuracy.__main__ import Domain, task_file
from benchmarks.accuracy.kept_rows import METHODS, KeptRow, kept_table
from benchmarks.accuracy.settings import WRITING, effort_of
from benchmarks.accuracy.study import switch_bytes
from weightpager.bundle import Bundle, writing
from weightpager.bundle.report.compile_report import read_report
from weightpager.cli.progress import progress
from weightpager.compiler.keep import choose_kept
from weightpager.compiler.pipeline import Sparse, assemble
from weightpager.compiler.prepare import prepare
from weightpager.compiler.recovery.recover import recover
from weightpager.compiler.resume.cache import Cache
from weightpager.compiler.resume.identities import compile_identity
from weightpager.compiler.resume.journal import CompileRun, Journal
from weightpager.compiler.task_file.file import TaskFile, restated
from weightpager.progress import Progress, silent

_FEW = 8
"""Rows of a step where tasks write: twice as many take more than 22 GiB with 384 tokens each."""


def compiled(
    domain: str, tasks: TaskFile, method: str, share: float, folder: Path, told: Progress = silent
) -> Iterator[KeptRow]:
    """A row for each task, of a bundle that is made in a folder. What methods have in common is done once."""
    stated = restated(tasks, keep=share, compare="none", **METHODS[method])
    if domain in WRITING:
        batch = {"batch": _FEW}
        training = {**tasks.training.model_dump(exclude_unset=True), **batch}
        stated = restated(stated, training=training, recover={"method": stated.recover.method, **batch})
    # Without a journal a finished training couldn't be given to the cache.
    run = CompileRun(told, Journal(folder / "journal", compile_identity(stated)))
    with run.journal.held():
        bundle, seconds = _made(stated, method, run, folder)
    switches, origin = switch_bytes(bundle), row_file.origin("benchmarks.accuracy.kept")
    for score in read_report(bundle).tasks:
        size, unit = round(score.density * bundle.dense_bytes), stated.units.unit
        yield KeptRow(
            domain, share, method, score.name, unit, size, score.metric, score.dense, score.sparse,
            switches[score.name], search_s=seconds, **origin,
        )  # fmt: skip


def _made(stated: TaskFile, method: str, run: CompileRun, folder: Path) -> tuple[Bundle, float]:
    """The bundle, and the seconds that choosing took after the dense model was there."""
    dense, begin = prepare(stated, run, cache=Cache.of_user()), time.monotonic()
    kept = choose_kept(dense, run, together=method.endswith("together"))
    prepared, chosen, seconds = kept.prepared, kept.chosen, time.monotonic() - begin
    weights = recover(prepared.source, prepared.data, chosen.masks, run.journal, run.progress)
    with writing(folder / "kept.bundle", force=True) as writer:
        assemble(writer, prepared, Sparse(chosen.masks, weights, chosen.gap, kept=kept), run)
    return Bundle.open(folder / "kept.bundle"), round(seconds, 1)


def main(
    file: Annotated[Path, typer.Option("--json", help="File of rows.")],
    domain: Annotated[Domain, typer.Option(help="As of benchmarks.accuracy.")] = "A",
    keep: Annotated[float, typer.Option(help="Share of the dense metric that each task keeps.")] = 0.9,
    method: Annotated[list[str] | None, typer.Option(help="Only these methods.")] = None,
    quick: Annotated[bool, typer.Option(help="Fewer items.")] = False,
) -> None:
    """Measure what each task's share of the metric takes."""
    if unknown := set(method or ()) - set(METHODS):
        raise typer.BadParameter(f"expected {', '.join(METHODS)}; found {', '.join(sorted(unknown))}")
    tasks = task_file(domain, effort_of(domain, quick=quick), 0)
    for name in method or METHODS:
        with TemporaryDirectory() as folder, progress() as told:
            rows = [*compiled(domain, tasks, name, keep, Path(folder), told)]
        row_file.add(file, rows, KeptRow)
        typer.echo(kept_table(rows))


if __name__ == "__main__":
    typer.run(main)

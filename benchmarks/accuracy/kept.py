"""What tasks may drop while each keeps a share of the dense model's metric: layers, half-layers and blocks.

``python -m benchmarks.accuracy.kept --json kept.json --domain A`` compiles the tasks of a domain by each method.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.accuracy.__main__ import Domain, task_file
from benchmarks.accuracy.settings import ALIGNMENT, effort_of
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

METHODS: Mapping[str, Mapping[str, Any]] = {
    "layers one by one": {"units": "layer", "alignment": 0.0},
    "layers linked": {"units": "layer", "alignment": float("inf")},
    "half-layers linked": {"units": "half-layer", "alignment": ALIGNMENT},
    "half-layers together": {"units": "half-layer", "alignment": ALIGNMENT},
    "blocks": {"units": "block", "alignment": ALIGNMENT},
    "blocks, trained": {"units": "block", "alignment": ALIGNMENT, "recover": "finetune"},
}
"""What a method's task file says. Layers one by one are as SLEB drops them (arXiv 2402.09025), but by the loss of each
task; linked ones rather those that earlier tasks have dropped."""


@dataclass(frozen=True)
class KeptRow:
    """What a method left of a task.

    Attributes:
        bytes: of the blocks that it keeps.
        value: its metric on held-out data, through the engine.
        switch_bytes: mean bytes that a switch to it loads.
    """

    method: str
    task: str
    units: str
    bytes: int
    metric: str
    dense: float | None
    value: float
    switch_bytes: int


def compiled(tasks: TaskFile, method: str, share: float, folder: Path, told: Progress = silent) -> Iterator[KeptRow]:
    """A line for each task, of a bundle that is made in a folder. What methods have in common is done once."""
    stated = restated(tasks, keep=share, compare="none", **METHODS[method])
    # Without a journal a finished training couldn't be given to the cache.
    run = CompileRun(told, Journal(folder / "journal", compile_identity(stated)))
    with run.journal.held():
        yield from _rows(stated, method, run, folder)


def _rows(stated: TaskFile, method: str, run: CompileRun, folder: Path) -> Iterator[KeptRow]:
    kept = choose_kept(prepare(stated, run, cache=Cache.of_user()), run, together=method.endswith("together"))
    prepared, chosen = kept.prepared, kept.chosen
    weights = recover(prepared.source, prepared.data, chosen.masks, run.journal, run.progress)
    with writing(folder / "kept.bundle", force=True) as writer:
        assemble(writer, prepared, Sparse(chosen.masks, weights, chosen.gap, kept=kept), run)
    bundle = Bundle.open(folder / "kept.bundle")
    switches = switch_bytes(bundle)
    for score in read_report(bundle).tasks:
        size, unit = round(score.density * bundle.dense_bytes), stated.units.unit
        yield KeptRow(method, score.name, unit, size, score.metric, score.dense, score.sparse, switches[score.name])


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
    tasks, rows = task_file(domain, effort_of(domain, quick=quick), 0), []
    for name in method or METHODS:
        with TemporaryDirectory() as folder, progress() as told:
            rows += [asdict(row) for row in compiled(tasks, name, keep, Path(folder), told)]
        file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        for row in rows[-len(tasks.tasks) :]:
            typer.echo("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    typer.run(main)

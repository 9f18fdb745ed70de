"""Whether ``fit`` takes the best candidate: what it chooses beside all candidates, each trained for all steps.

``python -m benchmarks.accuracy.fit --domain A --quick --budget 4MiB --json docs/fit.json``
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks import row_file
from benchmarks.accuracy.__main__ import Domain, task_file
from benchmarks.accuracy.settings import effort_of
from weightpager.cli import output
from weightpager.cli.progress import progress
from weightpager.compiler.candidates import Candidate, choose_candidate, found_candidates, held_out_of_training
from weightpager.compiler.fit import density_of
from weightpager.compiler.prepare import prepare
from weightpager.compiler.resume.cache import Cache
from weightpager.compiler.resume.identities import compile_identity
from weightpager.compiler.resume.journal import CompileRun, Journal
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.task_file.file import restated
from weightpager.config import format_size, parse_size
from weightpager.progress import Progress


@dataclass(frozen=True)
class FitRow:
    """A candidate for a budget, trained for all steps.

    Attributes:
        value: mean of the tasks' metrics on held-out data, through the engine.
        dense: the same of the dense model that it starts from.
        chosen: whether ``fit`` takes it, going by validation data alone.
        train_s: seconds of its training.
        choice_s: seconds that ``fit`` took for its choice, the whole training of what it chose included.
    """

    domain: str
    budget: int
    candidate: str
    density: float
    value: float
    dense: float
    chosen: bool
    train_s: float
    choice_s: float
    quick: bool
    cpu: str
    command: str
    commit: str

    @property
    def key(self) -> tuple[str, int, str, bool]:
        return self.domain, self.budget, self.candidate, self.quick


def measured(domain: str, prepared: Prepared, quick: bool, folder: Path, told: Progress) -> Iterator[FitRow]:
    """A row for each candidate, from a task file with a budget."""
    run = CompileRun(told, Journal(folder / "journal", compile_identity(prepared.task_file)))
    with run.journal.held():
        begin = time.monotonic()
        found = choose_candidate(prepared, run)
        choice_s, origin = time.monotonic() - begin, row_file.origin("benchmarks.accuracy.fit")
        divided = replace(prepared, data=held_out_of_training(prepared.data))
        for candidate in found_candidates(divided, run):
            begin = time.monotonic()
            value = _value(candidate, run)
            yield FitRow(
                domain,
                prepared.task_file.fits or 0,
                candidate.name,
                round(density_of(candidate.prepared), 4),
                value,
                fmean(score.value for score in prepared.dense.values()),
                candidate.name == found.candidate.name,
                round(time.monotonic() - begin, 1),
                round(choice_s, 1),
                quick,
                **origin,
            )


def _value(candidate: Candidate, run: CompileRun) -> float:
    weights = candidate.trained(run, Journal.none(), candidate.name)
    scores = candidate.scores(weights, candidate.prepared.data, run, candidate.name)
    return fmean(score.value for score in scores.values())


def main(
    file: Annotated[Path, typer.Option("--json", help="File of rows.")],
    budget: Annotated[list[str], typer.Option(help="Memory for weights, such as 4MiB.")],
    domain: Annotated[Domain, typer.Option(help="As of benchmarks.accuracy.")] = "A",
    quick: Annotated[bool, typer.Option(help="Fewer steps and items.")] = False,
) -> None:
    """Measure every candidate for budgets, and what ``fit`` takes."""
    stated = task_file(domain, effort_of(domain, quick=quick), 0)
    recover = effort_of(domain, quick=quick).finetune(0).model_dump(exclude={"private_blocks", "low_rank"})
    with progress() as told:
        for size in budget:
            asked = restated(stated, fit=parse_size(size), recover=recover | {"patience": 4}, compare="none")
            with TemporaryDirectory() as folder:
                dense = prepare(asked, CompileRun(told), cache=Cache.of_user())
                for row in measured(domain, dense, quick, Path(folder), told):
                    row_file.add(file, [row], FitRow)
    output.table(
        f"Domain {domain}: mean of the tasks on held-out data",
        ["candidate", "memory", "of the blocks", "metric", "dense", "taken", "train", "choose"],
        [
            [
                row.candidate, format_size(row.budget), f"{row.density:.0%}", f"{row.value:.4f}", f"{row.dense:.4f}",
                "yes" if row.chosen else "", f"{row.train_s:.0f} s", f"{row.choice_s:.0f} s",
            ]
            for row in row_file.read(file, FitRow)
            if row.domain == domain and row.quick == quick
        ],
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)

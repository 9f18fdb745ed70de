"""The driving domain's bundles: seven questions about **rendered** roads, asked of the LLaVA of the accuracy study.

    python -m benchmarks.driving --bundles bundles

Finds the bundle of the study's row and its companions where ``benchmarks.accuracy --domain E --bundles bundles`` has
kept them, compiles what isn't there as the study does, with its seed 0, and prints what to run next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.accuracy.__main__ import Domain, kept_in, study_of
from benchmarks.accuracy.settings import ALL_BLOCKS, HALF, Effort, effort_of, settings
from benchmarks.accuracy.study import Setting
from benchmarks.results import command
from weightpager.bundle import Bundle
from weightpager.bundle.report.compile_report import read_report
from weightpager.cli.progress import progress
from weightpager.compiler.task_file.sections import RecoverSpec
from weightpager.config import cache_dir
from weightpager.progress import Progress
from weightpager_lab.companions import Name
from weightpager_lab.contest.plan import Subject

NAME = "driving, rendered scenes"
"""Of the contest, as `docs/results.json` has it; what else has to be said is in `benchmarks.report.run.NOTES`."""

DOMAIN: Domain = "E"
SEED = 0


def main(
    bundles: Annotated[
        Path | None, typer.Option(help="Folder that the accuracy benchmark keeps bundles in; in the cache if left out.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="To see whether it runs: accuracies mean nothing.")] = False,
) -> None:
    """Find or make the bundles."""
    folder = bundles or cache_dir() / "benchmarks" / f"driving{'-quick' if quick else ''}"
    with progress() as told:
        made = subject(folder, told, quick=quick)
    for score in read_report(made.bundle).tasks:
        dense = "" if score.dense is None else f", dense {score.dense:.4f}"
        typer.echo(f"{score.name}: {score.metric}{dense}, sparse {score.sparse:.4f}")
    typer.echo(command("driving", NAME, made))
    typer.echo(f"python -m benchmarks.prefetch --json docs/prefetch.json --driving {made.bundle.path}")


def subject(folder: Path, told: Progress, *, quick: bool = False) -> Subject:
    """The row's bundle and its companions in the accuracy benchmark's folder; what it lacks is compiled."""
    ours, others = compiled_with(effort_of(DOMAIN, quick=quick))
    kept = kept_in(folder, DOMAIN, SEED)
    missing = [setting for setting in (ours, *others.values()) if not (kept / setting.bundle_name).is_dir()]
    if missing:
        study = study_of(DOMAIN, SEED, told, folder, quick=quick)
        for setting in missing:
            study.sparse(setting)
    companions = {name: Bundle.open(kept / setting.bundle_name) for name, setting in others.items()}
    return Subject(Bundle.open(kept / ours.bundle_name), companions)


def compiled_with(effort: Effort) -> tuple[Setting, Mapping[Name, Setting]]:
    """How the bundle and its companions are compiled: by the study's rows without training, and one without alignment.

    That one is there for the bytes of its switches, so that its values are the dense ones.
    """
    every = (row for at in (HALF, ALL_BLOCKS) for row in settings(DOMAIN, at, effort, SEED, quick=False))
    rows = {row.method: row for row in every if row.recover.method == "closed-form"}
    ours = rows["ours_int4"]
    unaligned = replace(ours, method="unaligned", alignment=0.0, recover=RecoverSpec(method="none"))
    return ours, {
        "unaligned": unaligned,
        "all_blocks": rows["all_blocks_int4"],
        "one_mask": rows["shared_mask_int4"],
    }


if __name__ == "__main__":
    typer.run(main)

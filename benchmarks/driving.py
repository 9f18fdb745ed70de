"""The driving domain's bundles: five tasks on **rendered** roads, a ViT **trained here**, under the drive trace.

    python -m benchmarks.driving

Makes the scenes, the model, the bundle and its companions in the cache, unless they are there, and prints what to run
next. It takes about a quarter of an hour on one core.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.results import command
from weightpager.bundle import Bundle, writing
from weightpager.bundle.report.compile_report import read_report
from weightpager.cli.progress import progress
from weightpager.compiler.pipeline import build
from weightpager.compiler.prepare import prepare
from weightpager.compiler.resume.identities import compile_identity
from weightpager.compiler.resume.journal import CompileRun, Journal
from weightpager.compiler.task_file.file import from_dict
from weightpager.config import cache_dir
from weightpager.trace_file import Visit, write_trace
from weightpager_lab.companions import build_companions, companions_in
from weightpager_lab.contest.plan import Subject
from weightpager_lab.samples import driving
from weightpager_lab.samples.download import key_of
from weightpager_lab.trace import renamed
from weightpager_lab.traces import TRACES

NAME = "driving, rendered scenes"
"""Of the contest, as `docs/results.json` has it; what else has to be said is in `benchmarks.report.run.NOTES`."""

TASK_OF: Mapping[str, str] = {
    "motorway": "vehicle-ahead",
    "exit": "lane-offset",
    "tunnel": "lane-offset",
    "bridge": "lane-offset",
    "roadworks": "drivable-area",
    "toll": "vehicle-ahead",
    "main_road": "vehicle-ahead",
    "junction": "traffic-light",
    "roundabout": "drivable-area",
    "crossing": "traffic-light",
    "level_crossing": "traffic-light",
    "residential": "obstacle-distance",
    "school_zone": "obstacle-distance",
    "parking": "drivable-area",
    "manoeuvre": "obstacle-distance",
    "fuel_station": "drivable-area",
}
"""Kind of road, as the drive trace has it → what a car asks there first."""

SWITCHES = 2000


def main(
    quick: Annotated[bool, typer.Option("--quick", help="To see whether it runs: accuracies mean nothing.")] = False,
) -> None:
    """Make the bundles."""
    with progress() as told:
        made = bundles(cache_dir(), told, quick=quick)
    for score in read_report(made.bundle).tasks:
        typer.echo(f"{score.name}: {score.metric}, dense {score.dense:.4f}, sparse {score.sparse:.4f}")
    typer.echo(command("driving", NAME, made))


def bundles(cache: Path, progress: Any, *, quick: bool = False) -> Subject:
    """The bundle and its companions; compiled together unless the cache has all of them."""
    samples = driving.driving(cache, **(_QUICK_DATA if quick else {}), report=typer.echo)
    model = driving.road_model(cache, samples, **(_QUICK_MODEL if quick else {}), report=typer.echo)
    settings = {**_SETTINGS, **(_QUICK_SETTINGS if quick else {})}
    folder = cache / "benchmarks" / f"driving-{key_of(model=model.name, settings=settings)}"
    path = folder / "aligned.bundle"
    if not (path.is_dir() and companions_in(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        trace = folder / "drive.trace.jsonl"
        write_trace(trace, visits())
        tasks = {sample.name: sample.entry() for sample in samples}
        task_file = from_dict({**settings, "model": str(model), "transitions": str(trace), "tasks": tasks})
        journal = Journal(folder / "journal", compile_identity(task_file))
        run = CompileRun(progress, journal)
        prepared = prepare(task_file, run)
        build_companions(prepared, folder, run)
        with writing(path, force=True) as writer:
            build(writer, prepared.changed(compare="dense"), run)
        journal.remove()
    return Subject(Bundle.open(path), companions_in(folder))


def visits() -> tuple[Visit, ...]:
    """The drive trace, in terms of the five tasks: roads in a row on which a car asks the same are one visit."""
    return renamed(TRACES["drive"](SWITCHES).visits, TASK_OF)


_SETTINGS: dict[str, Any] = {
    "sparsity": 0.75,
    "dtype": "int4",
    "alignment": 0.5,
    "calibration": {"items": 256, "batch": 32},
    "training": {"steps": 300, "learning_rate": 3e-4, "batch": 16},
    "recover": {
        "method": "finetune",
        "steps": 500,
        "learning_rate": 5e-4,
        "batch": 16,
        "patience": 0,
    },
}
_QUICK_DATA = {"train_scenes": 24, "eval_scenes": 8}
_QUICK_MODEL = {"steps": 2}
_QUICK_SETTINGS = {
    "calibration": {"items": 8, "batch": 8},
    "training": {"steps": 5, "batch": 4},
    "recover": {"method": "finetune", "steps": 5, "batch": 4, "patience": 0},
}

if __name__ == "__main__":
    typer.run(main)

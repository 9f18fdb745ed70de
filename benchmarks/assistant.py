"""The text assistant's bundles: the demo's, and its companions, from the same dense model.

    python -m benchmarks.assistant

Makes them in the cache, unless they are there, and prints what to run next. The demo's bundle takes about five minutes
on two cores, its companions about three. Run it with as many threads as the demo: another number of threads doesn't
train quite the same dense model, and can't take that one from the cache.
"""

from __future__ import annotations

from statistics import fmean

import typer

from benchmarks.results import command
from weightpager.bundle.report.compile_report import read_report
from weightpager.cli.progress import progress
from weightpager.config import cache_dir
from weightpager_lab.contest.plan import Subject
from weightpager_lab.demo.compiled import companions, compiled
from weightpager_lab.demo.run import fetched

NAME = "text assistant, six tasks"
"""Of the contest, as `docs/results.json` has it."""


def main() -> None:
    """Make the bundles."""
    with progress() as told:
        model, samples, _ = fetched(cache_dir(), told)
        ours = compiled(model, samples, cache_dir(), told)
        made = Subject(ours.bundle, companions(ours, model, samples, told))
    for bundle in (made.bundle, *made.companions.values()):
        found = fmean(task.sparse for task in read_report(bundle).tasks)
        typer.echo(f"{bundle.path.stem}: mean accuracy {found:.4f}")
    typer.echo(command("text assistant", NAME, made))


if __name__ == "__main__":
    typer.run(main)

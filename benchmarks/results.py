"""All that ``docs/results.md`` shows, one contest after the other; each is put into the file when it ends.

    python -m benchmarks.results --json docs/results.json
    python -m benchmarks.results --json docs/results.json --only "half a billion"

Contests of compiled bundles run where ``--bundle "NAME=PATH"`` names them. Their companions follow, in this order:
``"NAME=PATH=UNALIGNED=ALL-BLOCKS=ONE-MASK"``. What is empty, or left out at the end, takes no part.
`benchmarks.assistant` and `benchmarks.driving` make all of these bundles, and print the command.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter

from benchmarks import row_file
from benchmarks.report import results_file
from weightpager.bundle import Bundle
from weightpager.config import cache_dir, parse_bandwidth, parse_size
from weightpager.page_dtype import PageDtype
from weightpager_lab.companions import COMPANIONS
from weightpager_lab.contest.plan import Plan, Subject
from weightpager_lab.contest.result import Limits
from weightpager_lab.contest.run import run_contest
from weightpager_lab.synthetic_bundle import billion, bundle_of, companions_of, quarter_kept

SYNTHETIC = {"half a billion parameters, random": quarter_kept, "one billion parameters, random": billion}
"""Contests about speed and memory only, and what they are about."""

MEMORY, OF_BILLIONS = "2GiB", "4GiB"
"""Of every process, if nothing else is asked for: so a contest that is run again has the memory that it had."""


def main(
    json: Annotated[Path, typer.Option(help="File of results.")],
    bundle: Annotated[
        list[str] | None, typer.Option(help="A compiled one: NAME=PATH, or NAME=PATH=UNALIGNED=ALL-BLOCKS=ONE-MASK.")
    ] = None,
    only: Annotated[str, typer.Option(help="Only contests with this in their names.")] = "",
    memory: Annotated[
        str | None, typer.Option(help=f"Of every process; {MEMORY}, {OF_BILLIONS} for a billion.")
    ] = None,
    storage: Annotated[str, typer.Option(help="Of the disk.")] = "300MB/s",
    cpus: Annotated[int, typer.Option(help="Of every process.")] = 2,
    dtype: Annotated[str, typer.Option(help="Of the pages of random weights.")] = "int4",
    repeats: Annotated[int, typer.Option(help="Of every ordered pair.")] = 3,
    seconds: Annotated[float, typer.Option(help="For the pairs of one method.")] = 60.0,
) -> None:
    """Run contests."""
    for name, subject in _subjects(bundle or [], only, dtype):
        plan = Plan(
            subject.bundle,
            subject.companions,
            Limits(memory=parse_size(memory or memory_of(name)), storage=int(parse_bandwidth(storage)), cpus=cpus),
            repeats=repeats,
            seconds=seconds,
            random_weights=subject.random_weights,
            command=row_file.command("benchmarks.results"),
        )
        found = run_contest(plan, lambda stage, done, total: typer.echo(f"{stage} {done}/{total}", err=True))
        results = results_file.read(json)
        results_file.write(json, results.model_copy(update={"contests": results.contests | {name: found}}))
        for key, value in found.figures.items():
            typer.echo(f"{name}: {key} = {value}")


def memory_of(name: str) -> str:
    return OF_BILLIONS if name.startswith("one billion") else MEMORY


def _subjects(named: list[str], only: str, dtype: str) -> Iterator[tuple[str, Subject]]:
    for text in named:
        name = text.partition("=")[0]
        if only in name:
            yield name, named_subject(text)
    folder = cache_dir() / "benchmarks" / "contest"
    known: PageDtype = TypeAdapter(PageDtype).validate_python(dtype)
    for name, recipe in SYNTHETIC.items():
        if only in name:
            ours = bundle_of(recipe().stored_in(known), folder, typer.echo)
            yield name, Subject(ours, companions_of(recipe(), folder, typer.echo, known), random_weights=True)


def named_subject(text: str) -> Subject:
    """The bundles that a ``--bundle`` names.

    Raises:
        typer.BadParameter: it names none, or too many.
        BundleError: one can't be opened.
    """
    _, *paths = text.split("=")
    if not 1 <= len(paths) <= 1 + len(COMPANIONS):
        raise typer.BadParameter(
            f"expected NAME=PATH, or NAME=PATH=UNALIGNED=ALL-BLOCKS=ONE-MASK, found {text!r}", param_hint="--bundle"
        )
    ours, *others = paths
    companions = zip(COMPANIONS, others, strict=False)
    return Subject(Bundle.open(ours), {name: Bundle.open(path) for name, path in companions if path})


def command(only: str, name: str, subject: Subject) -> str:
    """What runs the contest of compiled bundles; ``only`` is in its name and in no other's."""
    others = (subject.companions.get(companion) for companion in COMPANIONS)
    text = "=".join([name, str(subject.bundle.path), *(str(bundle.path) if bundle else "" for bundle in others)])
    return (
        f"python -m benchmarks.results --json docs/results.json --only {shlex.quote(only)} --seconds 30 "
        f"--bundle {shlex.quote(text.rstrip('='))}"
    )


if __name__ == "__main__":
    typer.run(main)

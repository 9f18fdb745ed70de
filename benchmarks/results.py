"""All that ``docs/results.md`` shows, one contest after the other; each is put into the file when it ends.

    python -m benchmarks.results --json docs/results.json
    python -m benchmarks.results --json docs/results.json --only "half a billion"

Contests of compiled bundles run where ``--bundle "NAME=PATH"`` names them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter

from benchmarks import provenance
from benchmarks.report import results_file
from weightpager.bundle import Bundle
from weightpager.config import cache_dir, parse_bandwidth, parse_size
from weightpager.lab.contest.results.plan import Plan
from weightpager.lab.contest.results.result import Limits
from weightpager.lab.contest.run import run_contest
from weightpager.lab.synthetic_bundle import billion, bundle_of, quarter_kept
from weightpager.page_dtype import PageDtype

SYNTHETIC = {"half a billion parameters, random": quarter_kept, "one billion parameters, random": billion}
"""Contests about speed and memory only, and what they are about."""

MEMORY, OF_BILLIONS = "2GiB", "4GiB"
"""Of every process, if nothing else is asked for: so a contest that is run again has the memory that it had."""


def main(
    json: Annotated[Path, typer.Option(help="File of results.")],
    bundle: Annotated[list[str] | None, typer.Option(help="A compiled one: NAME=PATH, or NAME=PATH=UNALIGNED.")] = None,
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
    for name, ours, unaligned, is_random in _subjects(bundle or [], only, dtype):
        plan = Plan(
            ours,
            unaligned,
            Limits(memory=parse_size(memory or memory_of(name)), storage=int(parse_bandwidth(storage)), cpus=cpus),
            repeats=repeats,
            seconds=seconds,
            random_weights=is_random,
            command=provenance.command("benchmarks.results"),
        )
        found = run_contest(plan, lambda stage, done, total: typer.echo(f"{stage} {done}/{total}", err=True))
        results = results_file.read(json)
        results_file.write(json, results.model_copy(update={"contests": results.contests | {name: found}}))
        for key, value in found.figures.items():
            typer.echo(f"{name}: {key} = {value}")


def memory_of(name: str) -> str:
    """What the processes of a contest have if nothing else is asked for."""
    return OF_BILLIONS if name.startswith("one billion") else MEMORY


def _subjects(named: list[str], only: str, dtype: str) -> Iterator[tuple[str, Bundle, Bundle | None, bool]]:
    """Names, bundles, the same without alignment, and whether their weights are random."""
    for text in named:
        name, path, *unaligned = text.split("=")
        if only in name:
            yield name, Bundle.open(path), Bundle.open(unaligned[0]) if unaligned else None, False
    folder = cache_dir() / "benchmarks" / "contest"
    known: PageDtype = TypeAdapter(PageDtype).validate_python(dtype)
    for name, recipe in SYNTHETIC.items():
        if only in name:
            ours, unaligned_bundle = (
                bundle_of(recipe(aligned=aligned).stored_in(known), folder, typer.echo) for aligned in (True, False)
            )
            yield name, ours, unaligned_bundle, True


if __name__ == "__main__":
    typer.run(main)

"""A box: bundles of an encoder, a writer and a driving model in one memory budget, against the ways of today.

    python -m benchmarks.box.bundles --out bundles
    python -m benchmarks.box bundles/*.bundle --json box.json

Mixed requests in one trace, at budgets from what the largest bundle can use to what all can use together. Rounds take
turns among methods. Interrupted, the same command goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import row_file
from benchmarks.box.boxes import METHODS, OF_A_ROUND, parts
from benchmarks.box.rows import OF_ROUNDS, SHARES, Row
from benchmarks.box.trial import Figures, Spec, in_a_process
from weightpager.bundle import Bundle
from weightpager.config import parse_bandwidth
from weightpager.errors import BudgetError
from weightpager.runtime.budget import largest_budget, smallest_budget
from weightpager.runtime.shared_budget import name_of

ALONE = ("Models", "Engine")
PART_ALONE = 0.75
"""Of what a bundle can use, where it is alone."""


def main(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle directories.")],
    file: Annotated[Path, typer.Option("--json", help="File of rows; those that it has aren't measured again.")],
    storage: Annotated[str, typer.Option(help="Bandwidth that is imitated; 0 for the disk as it is.")] = "300MB/s",
    requests: Annotated[int, typer.Option(help="Of a trace.")] = 80,
    rounds: Annotated[int, typer.Option(help="Traces, each with a seed of its own.")] = 3,
    share: Annotated[list[float] | None, typer.Option(help="Only traces, in these shares of all.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only rows of this kind.")] = None,
    minutes: Annotated[float, typer.Option(help="No measurement begins after so long.")] = 60.0,
) -> None:
    """Measure what isn't in the file yet."""
    rate = 0.0 if storage == "0" else parse_bandwidth(storage)
    ends = time.monotonic() + 60 * minutes
    have = {row.key for row in row_file.read(file, Row)}
    paths = [path.absolute() for path in bundles]
    for of_all, spec in specs(paths, rate, requests, rounds):
        names = [name_of(Path(path)) for path in spec.bundles]
        row = Row(
            spec.kind, spec.method, of_all, spec.budget, spec.seed, rate, names, None,
            **row_file.origin("benchmarks.box"),
        )  # fmt: skip
        if row.key in have or (kind and spec.kind != kind) or (share and (spec.kind != "trace" or of_all not in share)):
            continue
        if time.monotonic() > ends:
            typer.echo("the time is up: the same command goes on")
            return
        figures = measured(spec)
        row_file.add(file, [Row(**{**vars(row), "figures": figures})], Row)
        typer.echo(f"{spec.kind}, {spec.method}, {of_all}, {row.bundles}: {json.dumps(figures and figures[-1])}")


def specs(paths: Sequence[Path], rate: float, requests: int, rounds: int) -> Iterator[tuple[float, Spec]]:
    """What is measured, each with its share of all that the bundles can use; a round after the other."""
    opened = [Bundle.open(path) for path in paths]
    needs = [largest_budget(bundle) for bundle in opened]
    budgets = {share: max(round(share * sum(needs)), max(map(smallest_budget, opened))) for share in SHARES}
    budgets[0.0] = max(needs)
    every = list(map(str, paths))
    for repeat in range(rounds):
        for share in sorted(SHARES, key=lambda each: each != 0.5):  # what is asked for first
            for method in METHODS:
                yield share, Spec("trace", every, method, budgets[share], rate, requests, repeat)
        for share in (share for share in OF_ROUNDS if share in budgets):
            for method in OF_A_ROUND:
                yield share, Spec("rounds", every, method, budgets[share], rate, requests, repeat)
        yield 1.0, Spec("steps", every, "ours", budgets[1.0], rate, 0, repeat)
        for path, need, bundle in zip(every, needs, opened, strict=True):
            budget = max(round(PART_ALONE * need), smallest_budget(bundle))
            for method in ALONE if repeat % 2 else reversed(ALONE):
                yield PART_ALONE, Spec("alone", [path], method, budget, rate, requests, repeat)


def measured(spec: Spec) -> list[Figures] | None:
    """Figures; None where the budget can't be split by hand."""
    if spec.kind == "trace" and spec.method == "split by hand":
        try:
            parts(spec.opened, spec.budget)
        except BudgetError:
            return None
    return in_a_process(spec)


if __name__ == "__main__":
    typer.run(main)

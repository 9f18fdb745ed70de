"""What delivery costs, and what it withstands.

    python -m benchmarks.fleet BUNDLE --json fleet.json
    python -m benchmarks.fleet BUNDLE --large LARGE --kills 200 --cuts 200 --mutants 10000 --json fleet.json

BUNDLE is the one whose last task is added, and trained again; LARGE the one that is timed against curl; kills, cut
connections and mutants are tried on a bundle that is made small for it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import row_file
from benchmarks.fleet import trials


def main(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory, of two tasks or more.")],
    large: Annotated[Path | None, typer.Option(help="Bundle directory, to time. Default: BUNDLE.")] = None,
    kill: Annotated[int, typer.Option("--kills", help="Of each of publish, pull and rollback.")] = 200,
    cut: Annotated[int, typer.Option("--cuts", help="Connections that are cut off.")] = 200,
    mutant: Annotated[int, typer.Option("--mutants", help="Repositories with something changed.")] = 10_000,
    minutes: Annotated[float, typer.Option(help="For each of kills, cuts and mutants, at most.")] = 30.0,
    folder: Annotated[Path | None, typer.Option(help="To work in. Default: where temporary files lie.")] = None,
    file: Annotated[Path | None, typer.Option("--json", help="File of figures.")] = None,
) -> None:
    """Measure, and try to break it."""
    found: dict[str, Any] = {"command": row_file.command("benchmarks.fleet"), "commit": row_file.commit()}

    def note(name: str, figures: dict[str, Any]) -> None:
        found[name] = figures
        typer.echo(f"{name}: {json.dumps(figures)}")
        if file is not None:
            row_file.write_json(file, found)

    with tempfile.TemporaryDirectory(prefix="weightpager-fleet-", dir=folder) as place:
        work = Path(place)
        note("added", trials.added(bundle, work / "added"))
        note("trained", trials.trained_again(bundle, work / "trained"))
        note("speed", trials.measure(large or bundle, work / "speed"))
        if kill or cut or mutant:
            small = trials.small_fleet(work / "small")
        if kill:
            note("kills", trials.kill_all(small, work / "kills", kill, 60 * minutes))
        if cut:
            note("cuts", trials.cut_off(small, work / "cuts", cut, 60 * minutes))
        if mutant:
            note("mutants", trials.mutate(small, work / "mutants", mutant, 60 * minutes))
    failures = [each for figures in found.values() if isinstance(figures, dict) for each in figures.get("failures", [])]
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

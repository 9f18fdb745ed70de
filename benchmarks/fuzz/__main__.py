"""Mutants of tiny bundles: opened, checked, read, run.

python -m benchmarks.fuzz --mutants 100000 --seed 1 --json fuzz.json

A mutant is drawn from the seed and its number alone: what was stopped goes on with --first, and parts of a range may
run beside each other.
"""

from __future__ import annotations

import json as json_module
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.fuzz.campaign import MUTANT, Campaign, Result
from benchmarks.fuzz.mutant import WHOLE, Original, compile_originals
from weightpager.cli import output

_FAILURES_SHOWN = 40


@dataclass
class Tally:
    """Counts of results.

    Attributes:
        outcomes: kind of change and outcome → mutants.
        refusals: class of error and step → mutants.
        failures: all of them.
        ran: mutants that an engine was asked for.
        slowest, largest: seconds and bytes of the mutants that took most.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Result] = field(default_factory=list)
    ran: int = 0
    slowest: float = 0.0
    largest: int = 0

    @property
    def mutants(self) -> int:
        return sum(self.outcomes.values())

    def add(self, result: Result) -> None:
        self.outcomes[result.kind, result.outcome] += 1
        self.ran += result.ran
        self.slowest = max(self.slowest, result.seconds)
        self.largest = max(self.largest, result.peak)
        if result.outcome == "refused":
            self.refusals[result.what, result.step] += 1
        elif result.outcome == "failure":
            self.failures.append(result)

    def show(self) -> None:
        outcomes = ["accepted", "other answers", "refused", "failure"]
        kinds = sorted({kind for kind, _ in self.outcomes})
        rows = [[kind, *(str(self.outcomes[kind, outcome]) for outcome in outcomes)] for kind in kinds]
        rows.append(["all", *(str(sum(self.outcomes[kind, outcome] for kind in kinds)) for outcome in outcomes)])
        output.table("mutants by change and outcome", ["change", *outcomes], rows)
        output.table(
            "refusals", ["error", "at", "mutants"], [[*key, str(count)] for key, count in self.refusals.most_common()]
        )
        for result in self.failures[:_FAILURES_SHOWN]:
            print(f"--only {result.number}: {result}")
        if len(self.failures) > _FAILURES_SHOWN:
            print(f"… and {len(self.failures) - _FAILURES_SHOWN} failures more")

    def json(self, seed: int, seconds: float) -> dict[str, Any]:
        return {
            "seed": seed,
            "mutants": self.mutants,
            "ran": self.ran,
            "seconds": round(seconds, 1),
            "slowest": round(self.slowest, 2),
            "largest": self.largest,
            "outcomes": {f"{kind}: {outcome}": count for (kind, outcome), count in sorted(self.outcomes.items())},
            "refusals": {f"{what} at {step}": count for (what, step), count in self.refusals.most_common()},
            "failures": [asdict(result) for result in self.failures],
        }


# Before anything imports torch or transformers: no hub, and no threads that a fork would lose.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


_PROGRESS_SECONDS = 10.0


def main(
    mutants: Annotated[int, typer.Option(help="How many to try.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Draws them.")] = 0,
    first: Annotated[int, typer.Option(help="Number of the first one.")] = 0,
    seconds: Annotated[float, typer.Option(help="Stop after so long.")] = float("inf"),
    only: Annotated[int | None, typer.Option(help="Number of the one to try again.")] = None,
    originals: Annotated[Path | None, typer.Option(help="Where compiled originals are kept.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder, not there yet, to leave the last mutant in.")] = None,
    json: Annotated[Path | None, typer.Option(help="File to write the summary to.")] = None,
) -> None:
    """Try mutants and say what came of them; exits with 1 if any failed."""
    torch.set_num_threads(1)
    numbers = [only] if only is not None else range(first, first + mutants)
    tally, start = Tally(), time.perf_counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        root = Path(folder)
        root.chmod(0o755)  # mutants with a locked file are tried as nobody
        campaign = Campaign(_prepare(root, originals), seed, root)
        start = shown = time.perf_counter()
        with closing(campaign.run(numbers)) as results, suppress(KeyboardInterrupt):
            for result in results:
                tally.add(result)
                if result.outcome == "failure":
                    print(f"--only {result.number}: {result}", file=sys.stderr, flush=True)
                now = time.perf_counter()
                if now - shown > _PROGRESS_SECONDS:
                    shown = now
                    _progress(tally, now - start)
                if now - start > seconds:
                    break
        if keep is not None:
            shutil.move(root / MUTANT, keep)
    _finish(tally, seed, time.perf_counter() - start, json)
    if tally.mutants < len(numbers):
        left = len(numbers) - tally.mutants
        print(f"go on with --seed {seed} --first {numbers[tally.mutants]} --mutants {left}")
    if tally.failures:
        raise typer.Exit(1)


def _prepare(root: Path, kept: Path | None) -> list[Original]:
    """Originals on the mutants' file system, so that they can be linked."""
    source = root / "compiled" if kept is None else kept
    if not list(source.glob(f"*/{WHOLE}")):
        _compile(source)
    found = []
    for path in sorted(source.glob(f"*/{WHOLE}")):
        copy = root / "originals" / path.parent.name / WHOLE
        found.append(Original.of(Path(shutil.copytree(path, copy))))
    return found


def _compile(folder: Path) -> None:
    """In a process of its own: compiling leaves threads behind."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            compile_originals(folder)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the originals could not be compiled")


def _progress(tally: Tally, seconds: float) -> None:
    rate = tally.mutants / seconds
    print(f"{tally.mutants} mutants, {rate:.0f}/s, {len(tally.failures)} failures", file=sys.stderr, flush=True)


def _finish(tally: Tally, seed: int, seconds: float, json: Path | None) -> None:
    tally.show()
    print(
        f"seed {seed}: {tally.mutants} mutants in {seconds:.0f} s, {tally.mutants / seconds:.0f}/s; "
        f"{tally.ran} with an engine; the slowest took {tally.slowest:.2f} s, the largest {tally.largest >> 20} MiB; "
        f"{len(tally.failures)} failures"
    )
    if json is not None:
        json.write_text(json_module.dumps(tally.json(seed, seconds), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

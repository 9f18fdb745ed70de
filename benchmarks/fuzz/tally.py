"""What came of all mutants, in numbers and tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.fuzz.campaign import Result
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
        """That were tried."""
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
        """It as JSON has it."""
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

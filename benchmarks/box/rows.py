"""Rows of the box, one for each measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

SHARES = (0.0, 0.5, 0.8, 1.0)
"""Budgets, as shares of what all bundles can use; 0 is what the one that needs most can use."""

OF_ROUNDS = (0.5, 0.8)
"""Those of requests that come in rounds."""


OF_RESIDENT = (0.5, 1.0)
"""Those of bundles that others keep in memory for good."""

RESIDENT = "resident"
"""The kind of rows of those bundles that others keep in memory for good."""

PEERS = "ONNX Runtime, llama.cpp"


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        kind: ``trace``, ``rounds``, ``steps``, ``alone`` or `RESIDENT`.
        method: what was measured.
        share: of `SHARES`.
        budget: bytes.
        repeat: which one; also the trace's seed.
        rate: bytes a second of the storage.
        bundles: their names.
        figures: of a trace one set; of steps one for each. None: the method can't run in this budget.
        command, commit, cpu: where the row comes from.
    """

    kind: str
    method: str
    share: float
    budget: int
    repeat: int
    rate: float
    bundles: list[str]
    figures: list[dict[str, float]] | None
    command: str
    commit: str
    cpu: str

    @property
    def key(self) -> tuple[str, str, float, int, tuple[str, ...]]:
        return self.kind, self.method, self.share, self.repeat, tuple(self.bundles)


@dataclass(frozen=True)
class Spread:
    """Median, least and most."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(median(found), min(found), max(found))

    def shown(self, form: Callable[[float], str]) -> str:
        """As text; the range only where it can be seen."""
        low, middle, high = map(form, (self.low, self.median, self.high))
        return middle if low == high else f"{middle} ({low}–{high})"


def of(rows: Sequence[Row], kind: str, method: str, share: float | None = None) -> list[Row]:
    """Those of a method, by repeat."""
    found = [row for row in rows if row.kind == kind and row.method == method and share in (None, row.share)]
    return sorted(found, key=lambda row: row.repeat)


def pairs(ours: Sequence[Row], theirs: Sequence[Row]) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Figures of the same repeats and bundles of two methods that both can run."""
    found = {(row.repeat, *row.bundles): row.figures for row in theirs}
    return [
        (row.figures[0], other[0]) for row in ours if row.figures and (other := found.get((row.repeat, *row.bundles)))
    ]

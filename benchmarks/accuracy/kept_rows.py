"""What tasks drop while each keeps a share of the dense model's metric: the methods, their rows and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.accuracy.settings import ALIGNMENT
from benchmarks.report.tables import table

METHODS: Mapping[str, Mapping[str, Any]] = {
    "layers one by one": {"units": "layer", "alignment": 0.0},
    "layers linked": {"units": "layer", "alignment": float("inf")},
    "half-layers linked": {"units": "half-layer", "alignment": ALIGNMENT},
    "half-layers together": {"units": "half-layer", "alignment": ALIGNMENT},
    "blocks": {"units": "block", "alignment": ALIGNMENT},
    "blocks, trained": {"units": "block", "alignment": ALIGNMENT, "recover": "finetune"},
}
"""What a method's task file says. Layers one by one are as SLEB drops them (arXiv 2402.09025), but by the loss of each
task; linked ones rather those that earlier tasks have dropped."""


@dataclass(frozen=True)
class KeptRow:
    """What a method left of a task.

    Attributes:
        keep: share of the dense metric that every task had to keep on its validation data.
        bytes: of the blocks that it keeps.
        value: its metric on held-out data, through the engine.
        switch_bytes: mean bytes that a switch to it loads.
        cpu, command, commit: where it was measured, and by what.
        search_s: seconds that it took to find what all tasks drop; 0 where that wasn't measured.
    """

    domain: str
    keep: float
    method: str
    task: str
    units: str
    bytes: int
    metric: str
    dense: float | None
    value: float
    switch_bytes: int
    cpu: str
    command: str
    commit: str
    search_s: float = 0.0

    @property
    def key(self) -> tuple[str, float, str, str]:
        return self.domain, self.keep, self.method, self.task


def kept_table(rows: Sequence[KeptRow]) -> str:
    """A line for each method, over the tasks of a domain; empty where there is none."""
    lines = []
    for method in METHODS:
        own = [row for row in rows if row.method == method]
        if not own:
            continue
        shares = [row.value / row.dense for row in own if row.dense]
        sizes = (fmean(row.bytes for row in own), fmean(row.switch_bytes for row in own))
        memory, switch = (f"{size / 1e6:.2f} MB" for size in sizes)
        found = f"{own[0].search_s / 60:.1f} min" if own[0].search_s else ""
        lines.append([method, own[0].units, memory, f"{fmean(shares):.3f}", f"{min(shares):.3f}", switch, found])
    header = ["method", "units", "weights of a task", "share of dense", "of the worst task", "a switch", "search"]
    return table(header, lines) if lines else ""

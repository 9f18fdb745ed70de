"""What the demo found out; `DemoResult` is the shape of ``demo --json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightpager.bundle.report.document import Document
from weightpager.bundle.report.interval import Interval


class DemoTask(Document):
    """A task's metric: the dense model, ours, one mask shared by all tasks, and the dense model quantised.

    All have been trained as long. The interval of ours holds its true value in 95 of 100 cases.
    """

    name: str
    metric: str
    items: int
    dense: float
    sparse: float
    shared_mask: float
    int8: float
    int4: float
    sparse_interval: Interval | None = None


class DemoSwitch(Document):
    """One ordered pair, cold: medians over the repeats.

    Attributes:
        from_task: left (``from`` in JSON).
        to_task: wanted (``to`` in JSON).
        bytes: that the switch read; exactly what the plan said.
        ms: of the switch, checked pages in place.
        gbps: bytes per nanosecond while loading.
        whole_sparse_bytes: of the next task's own sparse checkpoint, paged weights only, in the pages' dtype.
        whole_sparse_ms: to read that whole.
        own_checkpoint_bytes: of all that the task has, tables in int8 included.
        own_checkpoint_ms: to read that whole.
        dense_ms: to read the whole dense checkpoint.
        raw_ms: of the same reads by eight plain native threads, every page hashed; None without the native module.
    """

    from_task: str
    to_task: str
    bytes: int
    ms: float
    gbps: float
    whole_sparse_bytes: int
    whole_sparse_ms: float
    own_checkpoint_bytes: int
    own_checkpoint_ms: float
    dense_ms: float
    raw_ms: float | None = None


ROW_FAULTS = "rows.forward_extra_ms_median"
"""The figure of what faults of rows on demand add to a text."""

OURS = "weightpager, arena of one task"
"""The row of memory that all others are compared with."""


class Resident(Document):
    """A way to serve all tasks: its bytes in memory, what a switch must load, and the mean metric of the tasks.

    Attributes:
        name: for people; ours begin with ``weightpager``.
        bytes: of all weights in memory.
        paged_bytes: the part of them that holds paged weights.
        mean_bytes_per_switch: that are read.
        mean_metric: over the tasks.
        ms_per_switch: mean over the pairs, cold; 0 where nothing is read, None where it wasn't measured.
        is_bundle: whether it is a rival that weightpager runs, too: a bundle of which all tasks have the same blocks.
    """

    name: str
    bytes: int
    paged_bytes: int
    mean_bytes_per_switch: int
    mean_metric: float
    ms_per_switch: float | None = None
    is_bundle: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is weightpager's."""
        return self.name.startswith("weightpager")

    def row_faults(self, figures: Mapping[str, float]) -> float | None:
        """Milliseconds that rows on demand add to a text at the median, beside the switch; None where none come so."""
        return figures.get(ROW_FAULTS) if self.ours or self.is_bundle else None


class DemoResult(Document):
    """Everything that the table and the page show.

    ``figures`` are what was found of what was asked for, by flat key, and ``verdict`` says in one sentence who wins at
    what. ``backend`` ran the tasks when they were measured. ``bundle`` is where what was compiled lies.
    """

    tasks: list[DemoTask]
    switches: list[DemoSwitch]
    memory: list[Resident]
    overlap: list[list[float]]
    mean_overlap: float
    mean_overlap_unaligned: float
    duality_gap: float
    budget: int
    sparsity: float
    dtype: str
    alignment: float
    training_steps: int
    recover_steps: int
    page_bytes: int
    page_fill: float
    dense_checkpoint_bytes: int
    cold: bool
    cold_note: str
    repeats: int
    missing: dict[str, str]
    compile_seconds: dict[str, float]
    seconds: float
    machine: dict[str, Any]
    figures: dict[str, float]
    verdict: str
    backend: str | None = None
    bundle: str = ""

    def mean(self, field: str) -> float:
        """Mean over the tasks of ``dense``, ``sparse``, ``shared_mask``, ``int8`` or ``int4``."""
        return sum(float(getattr(task, field)) for task in self.tasks) / len(self.tasks)

    def speedup(self, field: str) -> float:
        """All pairs' ``whole_sparse_ms`` or ``dense_ms`` together, over our time for all pairs together."""
        theirs = sum(float(getattr(switch, field)) for switch in self.switches)
        return theirs / sum(switch.ms for switch in self.switches)

    def speedup_range(self, field: str) -> tuple[float, float]:
        """The least and the greatest ratio of one pair."""
        ratios = [float(getattr(switch, field)) / switch.ms for switch in self.switches]
        return min(ratios), max(ratios)

    def document(self) -> dict[str, Any]:
        """As ``demo --json`` prints it: ``from`` and ``to`` are not names that Python allows."""
        content = self.model_dump()
        for switch in content["switches"]:
            switch["from"], switch["to"] = switch.pop("from_task"), switch.pop("to_task")
        return content

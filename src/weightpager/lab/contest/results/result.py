"""What a contest found; `Contest` is the shape of ``bench --json``."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, median
from typing import Any, Literal

from pydantic import Field

from weightpager.bundle.report.compile_report import ControlScore, TaskScore
from weightpager.bundle.report.document import Document
from weightpager.lab.companions.companion import Name
from weightpager.lab.contest.results.found import Found, Sample

Pair = tuple[str, str]


class Facts(Document):
    """What the bundle is.

    Attributes:
        name: of its directory.
        model: its architecture.
        random_weights: whether it stands for speed and memory only.
        tasks: their names.
        sparsity: mean over the tasks.
        overlap: [from][to], kept bytes that both have as a share of the next task's.
        mean_overlap: over all ordered pairs.
        dtype, block, page_bytes, page_fill: of its pages.
        dense_bytes: of the paged weights, if no block were dropped, in the pages' precision.
        dense_bf16_bytes: the same in bfloat16.
        largest_task_bytes: of the pages of the task that has most.
        kept_bytes: of all tasks' blocks, each stored for itself.
        stored_bytes: of all pages.
        table_bytes, resident_bytes, private_bytes: always in memory.
        planned: [from][to], bytes of the pages that a switch loads.
    """

    name: str
    model: str
    random_weights: bool
    tasks: list[str]
    sparsity: float
    overlap: list[list[float]]
    mean_overlap: float
    dtype: str
    block: str
    page_bytes: int
    page_fill: float
    dense_bytes: int
    dense_bf16_bytes: int
    largest_task_bytes: int
    kept_bytes: int
    stored_bytes: int
    table_bytes: int
    resident_bytes: int
    private_bytes: int
    planned: list[list[int]]


class Limits(Document):
    """What was asked for; None if the machine was used as it is."""

    memory: int | None
    storage: int | None
    cpus: int | None


class Row(Document):
    """One method under one budget.

    Attributes:
        method, label: see `methods`.
        room: how many of the largest task the budget has room for.
        budget: bytes for weights.
        status: ``failed`` is a result too: what doesn't fit into the memory limit is killed.
        reason: why it was skipped or failed.
        set_up: whether it had been set up when it failed; None if it didn't fail, and in results of earlier versions.
        unlimited: a line for each limit that was asked for and didn't hold; the row is no result under that limit.
        peak_memory: most bytes that the process's control group held, page cache included; None if not measured.
        seconds: that the process took.
        found: None unless measured.
    """

    method: str
    label: str
    room: float
    budget: int
    status: Literal["measured", "skipped", "failed"]
    reason: str = ""
    set_up: bool | None = None
    unlimited: list[str] = Field(default_factory=list)
    peak_memory: int | None = None
    seconds: float = 0.0
    found: Found | None = None

    @property
    def title(self) -> str:
        """The label; of ours, with the backend that it computed with."""
        native = self.found is not None and self.found.backend == "native"
        return f"{self.label} (native code)" if native else self.label

    def medians(self, field: Literal["ready", "first_output"]) -> dict[Pair, float]:
        """By pair, the median seconds over its repeats; pairs without a value are left out."""
        values: dict[Pair, list[float]] = {}
        for sample in self.found.samples if self.found else ():
            value = getattr(sample, field)
            if value is not None:
                values.setdefault((sample.from_task, sample.to_task), []).append(value)
        return {pair: median(known) for pair, known in values.items()}

    def values(self, field: Literal["ready", "first_output", "row_faults", "bytes"]) -> list[float]:
        """Of every sample that has it."""
        found: Iterator[Sample] = iter(self.found.samples if self.found else ())
        return [float(value) for sample in found if (value := getattr(sample, field)) is not None]

    @property
    def cold_note(self) -> str:
        """Why its reads weren't proved cold; empty if they were, or it wasn't measured."""
        return self.found.cold_note if self.found else ""

    @property
    def mean_waited(self) -> float | None:
        """Seconds that a visit of the trace waited, on average; None without a trace."""
        visits = self.found.visits if self.found else []
        return fmean(visit.waited for visit in visits) if visits else None


class Contest(Document):
    """Everything that a run of ``weightpager bench`` found.

    Attributes:
        facts: of the bundle.
        limits: that were asked for.
        rows: ours first.
        scores: accuracy of this very bundle, measured through the engine; empty where it has no held-out data.
        scores_from: ``this run``, or ``the compile`` whose report they are taken from; empty without scores.
        controls: what else could do the job, as the compile measured it.
        companion_scores: accuracy of companions, as their compiles measured it; those without a report are left out.
        compile_seconds: by stage, as the compile reported them.
        alignment_gap: of the alignment's objective to its bound; None without a report.
        repeats, seed, quick: as asked.
        command: that was typed.
        machine: that all ran on.
        load: processes that were running or waiting on average in the minute before: others disturb.
        seconds: altogether.
        figures: by flat key, what was found of what was asked for.
    """

    facts: Facts
    limits: Limits
    rows: list[Row]
    scores: list[TaskScore]
    scores_from: str
    controls: list[ControlScore]
    companion_scores: dict[Name, list[TaskScore]] = Field(default_factory=dict)
    compile_seconds: dict[str, float]
    alignment_gap: float | None
    repeats: int
    seed: int
    quick: bool
    command: str
    machine: dict[str, Any]
    load: float
    seconds: float
    figures: dict[str, float]

    def row(self, method: str, room: float = 1.0) -> Row | None:
        """A method's row that can be compared with ours; None if there is none."""
        return next((row for row in self.comparable if row.method == method and row.room == room), None)

    @property
    def comparable(self) -> list[Row]:
        """Rows that were measured as ours was: under the same limits, and cold unless ours wasn't either.

        Without a limit it is as if on another machine, and out of the page cache as if from another disk.
        """
        measured, ours = [row for row in self.rows if row.status == "measured"], self._ours
        return [
            row
            for row in measured
            if ours is None
            or (set(row.unlimited) == set(ours.unlimited) and (not row.cold_note or bool(ours.cold_note)))
        ]

    @property
    def cold(self) -> bool:
        """Whether our reads were proved cold, without which no figure of a switch counts."""
        return self._ours is None or not self._ours.cold_note

    @property
    def has_bf16(self) -> bool:
        """Whether the processor has instructions for bfloat16, in which rivals compute; unless it is known not to."""
        isa = self.machine.get("isa")
        return isa is None or any("bf16" in name for name in isa)

    @property
    def _ours(self) -> Row | None:
        return next((row for row in self.rows if row.method == "ours" and row.status == "measured"), None)

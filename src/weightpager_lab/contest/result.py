"""What a contest found; `Contest` is the shape of ``bench --json``."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, median
from typing import Any, Literal

from pydantic import Field

from weightpager.bundle.report.compile_report import ControlScore, Document, TaskScore
from weightpager_lab.companions import Name

Source = Literal["one", "random", "held-out"]
"""Of prompts: one for all forwards, as earlier versions had it; random ones; pieces of the task's held-out texts."""


READY = "ready"
"""A file in the folder of a job: its method has been set up."""


class Job(Document):
    """What a process is asked to measure.

    Attributes:
        method: its name.
        bundle, folder: paths of the bundle and of the checkpoints.
        budget: bytes of memory for weights.
        threads: reads in flight.
        pace: bytes per second that reads are slowed down to by the process itself; None if by the kernel or nobody.
        seconds: after which no further pair is measured, once every task has been switched to.
        repeats: of every ordered pair; 0 for no pairs.
        visits: of the trace; 0 for no trace.
        tasks: how many of the bundle's, from the first on.
        seed: of orders and inputs.
    """

    method: str
    bundle: str
    folder: str
    budget: int
    threads: int
    pace: float | None
    seconds: float
    repeats: int
    visits: int
    tasks: int
    seed: int


class Sample(Document):
    """One switch.

    Attributes:
        from_task, to_task: the pair.
        ready: seconds until all weights are in memory; None where the method doesn't wait for that.
        first_output: seconds until the first output of a prompt.
        bytes: that the process got from storage meanwhile.
        row_faults: seconds of the first output that rows of tables were read for; None where none come on demand, and
            in results of earlier versions.
    """

    from_task: str
    to_task: str
    ready: float | None
    first_output: float
    bytes: int
    row_faults: float | None = None


class Visit(Document):
    """One visit of a trace.

    Attributes:
        task: visited.
        waited: seconds until the first output, less a warm forward of such prompts: what the switch cost.
        bytes: that the process got from storage.
        weight_bytes: of weights in memory afterwards.
        process_bytes: of the whole process in memory afterwards.
    """

    task: str
    waited: float
    bytes: int
    weight_bytes: int
    process_bytes: int


class ProcessMemory(Document):
    """Bytes of a process after all its switches.

    Attributes:
        weights: tables and adapters included.
        paged: the part of them that holds paged weights.
        resident: of the process in memory, shared libraries in full.
        proportional: the same, what several processes share divided among them.
        anonymous: the part that belongs to no file.
    """

    weights: int
    paged: int
    resident: int
    proportional: int
    anonymous: int


class Found(Document):
    """All that a process measured.

    Attributes:
        samples: of pairs.
        cold_note: why the first sample that wasn't proved cold wasn't, or else the trace; empty if all were.
        visits: of the trace.
        memory: at the end.
        forwards: seconds of warm forwards.
        tokens: in each of them; for images, one.
        written: seconds of each token that was drawn behind a prompt, one at a time; empty where tasks don't write, and
            in results of earlier versions.
        kernel: instruction set of weightpager's kernels.
        torch_threads: that computed, native code's where it did.
        paced: whether the process slowed its own reads down.
        backend: what computed, "torch" or "native"; torch in results of earlier versions.
        calls: how often each paged kernel has run, where torch ran ours; empty otherwise, and in earlier results.
        prompts: where they come from; in results of earlier versions there was one.
    """

    samples: list[Sample]
    cold_note: str
    visits: list[Visit]
    memory: ProcessMemory
    forwards: list[float]
    tokens: int
    kernel: str
    torch_threads: int
    paced: bool
    backend: str = "torch"
    calls: dict[str, int] = Field(default_factory=dict)
    written: list[float] = Field(default_factory=list)
    prompts: Source = "one"


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

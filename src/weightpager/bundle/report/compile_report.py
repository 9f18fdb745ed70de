"""What a compile found out: ``report.json`` in the bundle."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from weightpager.bundle.format.manifest import TaskKind
from weightpager.bundle.format.names import REPORT
from weightpager.bundle.reader import Bundle
from weightpager.errors import BundleFormatError

CONFIDENCE = 0.95


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] <= value[1]:
        raise ValueError(f"an interval, the lower end first, got {value}")
    return value


Interval = Annotated[tuple[float, float], Field(strict=False), AfterValidator(_ordered)]
"""The lower and the upper end; infinite where nothing is known. A list of them is one, as JSON has it."""

UNKNOWN = (-math.inf, math.inf)


class Document(BaseModel):
    """Frozen; unknown keys refused; no silent conversion. A hopeless model's perplexity is written as ``Infinity``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants")


Bytes = Annotated[int, Field(ge=0, lt=2**63)]

LOWER_IS_BETTER = "perplexity"
"""The metric that is better where it is lower; it is never below 1."""


DENSE = "dense"
"""The control that is the dense model, trained as long as the bundle, or as it was if that does better."""

MASK = "shared mask"
"""The control in which all tasks keep the same blocks."""


FEW = 50
"""With fewer held-out texts, windows or images of a task, gaps of up to a dozen points may be chance."""

Compared = Literal["none", "few", "dense", "all"]
"""What a bundle was compared with: nothing; nothing, for few held-out items; the dense model; a shared mask too."""


class OtherScore(Document):
    """A task by one more metric, of the dense model (None where it isn't known) and through the engine."""

    metric: str
    dense: float | None
    sparse: float


class TaskScore(Document):
    """A task's metric on ``items`` held-out items, of the dense model and through the engine.

    ``density`` is the share of the paged weights' blocks that the task keeps. ``dense`` is None where the held-out data
    is no longer what it was when the bundle was compiled. ``texts`` is how many texts, windows or images the items lie
    in; ``loss_interval`` is of what the task loses against dense, item by item, in points, or in percent of perplexity.
    ``others`` are the other metrics that the task chooses.
    """

    name: str
    metric: str
    dense: float | None
    sparse: float
    density: float
    items: int
    texts: int | None = None
    dense_interval: Interval | None = None
    sparse_interval: Interval | None = None
    loss_interval: Interval | None = None
    others: list[OtherScore] = Field(default_factory=list)


class ControlScore(Document):
    """Something simpler that could do the same job: one shared mask, or the dense model as it is or quantised.

    Where recovery trains, all of them have been trained as long. Intervals lack tasks of which nothing is known.

    Attributes:
        name: ``shared mask``, ``dense``, ``int8``, ``int4``, ``int3`` or ``int2``. ``dense`` is there where recovery
            trains; the shared mask is in the bundle's dtype.
        resident_bytes: bytes of paged weights that are in memory at any time.
        scores: the metric on the same held-out items, by task.
        intervals: the scores' intervals.
        loss_intervals: intervals of what it loses against dense, in points or in percent of perplexity.
        gap_intervals: intervals of what it loses more than the bundle does, in the same unit.
    """

    name: str
    resident_bytes: Bytes
    scores: dict[str, float]
    intervals: dict[str, Interval] = Field(default_factory=dict)
    loss_intervals: dict[str, Interval] = Field(default_factory=dict)
    gap_intervals: dict[str, Interval] = Field(default_factory=dict)

    def only(self, tasks: Collection[str]) -> ControlScore:
        """The same of these tasks, each of which it has."""
        parts = ("scores", "intervals", "loss_intervals", "gap_intervals")
        return self.model_copy(
            update={
                part: {task: value for task, value in getattr(self, part).items() if task in tasks} for part in parts
            }
        )


class Growth(Document):
    """What tasks that were added to a bundle brought with them.

    Attributes:
        reused_bytes: bytes of the blocks that were in the bundle already.
        added_bytes: bytes of the pages that were appended.
        private_bytes: bytes of the new tasks' own parameters.
    """

    tasks: list[str]
    reused_bytes: Bytes
    added_bytes: Bytes
    private_bytes: Bytes


class FrontierPoint(Document):
    """A strength of alignment that a compile tried.

    Attributes:
        alignment: the strength λ; None for one shared mask.
        switch_bytes: bytes of the blocks that an average switch loads; pages add over-read.
        loss: the loss against no alignment, in points if measured, else in percent of the saliency that is kept.
    """

    alignment: float | None
    switch_bytes: float
    loss: float | None


class FitTrial(Document):
    """A candidate for a budget.

    Attributes:
        name: ``blocks``, alone; ``private blocks`` or ``low-rank parts`` beside fewer of them; ``one shared mask``; or
            ``a larger budget``, blocks alone again.
        budget: in bytes, that it was chosen for.
        density: share of the blocks that a task keeps.
        short_loss: of a validation example, the mean over the tasks, after a part of the training.
        loss: the same after all of it; None where that wasn't tried.
    """

    name: str
    budget: Bytes
    density: float
    dtype: str
    short_loss: float
    loss: float | None = None


class Fit(Document):
    """What a compile made of a budget that was stated in place of sparsity and dtype.

    Attributes:
        budget: the budget as stated, in bytes.
        bytes: bytes of what is always in memory, the least rows on demand, and the largest task's pages.
        density: share of the blocks that a task keeps.
        why: the reason why density and dtype were chosen.
        whole: the budget with which no block is dropped; None where none was.
        trials: candidates that were trained; empty where rules decided.
    """

    budget: Bytes
    bytes: Bytes
    density: float
    dtype: str
    why: str
    whole: Bytes | None = None
    trials: list[FitTrial] = Field(default_factory=list)

    @property
    def taken(self) -> str | None:
        """The name of the candidate that lost least; None where rules decided."""
        whole = {trial.name: trial.loss for trial in self.trials if trial.loss is not None}
        return min(whole, key=whole.__getitem__, default=None)


class KeepStep(Document):
    """What was tried of a task on the way to ``keep``.

    Attributes:
        dropped: half-layers, or layers, by the modules that hold them, beside those of the steps before that were
            taken; empty where blocks are dropped.
        metric: on validation data, before recovery.
        bytes: bytes of the blocks that the task keeps.
        taken: whether enough of the metric was left.
    """

    task: str
    dropped: list[str]
    metric: float
    bytes: Bytes
    taken: bool


class Keep(Document):
    """What a compile made of a share of the dense model's metric that every task shall keep.

    Attributes:
        share: as stated.
        kept: what each task keeps of it through the engine, on the same validation data.
        path: what was tried; where a compile was resumed, from there on.
    """

    share: float
    kept: dict[str, float]
    path: list[KeepStep]


class CompileReport(Document):
    """One compile.

    Attributes:
        mean_overlap: the mean overlap of all ordered pairs of tasks.
        duality_gap: the alignment's gap, (bound − objective) ÷ bound over all paged weights.
        added: scores of tasks that take others' blocks; without what the dense model would say.
        alignment: λ that the masks were chosen with; None for one shared mask.
        frontier: what was tried to find it, if the task file states a switch size or a loss.
        page_fill: share of the pages' bytes that some task uses.
        over_read: share of its pages' bytes that a task doesn't use, by task.
        seconds: the time that each stage took.
        threads: number of threads that torch computed with.
        controls: what else could do the job, for `advise`.
        tied: tensors that the model uses under several names: canonical name → the other ones.
        growth: what the last compile onto an existing bundle brought; None if there was none.
        peak_memory: most bytes that the process held, per stage; empty where the system didn't count.
        memory_bound: bytes that each stage was said to take at most, before the first one; of a model
            that lay on disk without what comes and goes as memory allows.
        evenness: share of an even budget that each paged weight keeps at least, where floors were raised above the
            usual ones.
        compare: what it was compared with; None after tasks were added.
        recover: the method by which accuracy was won back; the same.
        paged_share: share of a task's parameters that is in paged weights.
        not_paged: parameters that stay in memory, by why they aren't paged.
        fit: what was made of a budget; None where sparsity and dtype were stated.
        keep: what was made of a share of the metric; None where none was stated.
        without_graph: kinds of tasks that have no graph, and why.
        backend: the backend that ran the tasks when they were measured; the last ones, of a bundle that has grown.
    """

    tasks: list[TaskScore]
    added: list[TaskScore] = Field(default_factory=list)
    mean_overlap: float
    duality_gap: float
    alignment: float | None
    frontier: list[FrontierPoint]
    page_bytes: Bytes
    page_fill: float
    over_read: dict[str, float]
    seconds: dict[str, float]
    threads: int
    controls: list[ControlScore]
    tied: dict[str, list[str]] = Field(default_factory=dict)
    growth: Growth | None = None
    peak_memory: dict[str, Bytes] = Field(default_factory=dict)
    memory_bound: dict[str, Bytes] = Field(default_factory=dict)
    evenness: float = 0.0
    compare: Compared | None = None
    recover: str | None = None
    paged_share: Annotated[float, Field(ge=0, le=1)] | None = None
    not_paged: dict[str, Bytes] = Field(default_factory=dict)
    fit: Fit | None = None
    keep: Keep | None = None
    without_graph: dict[TaskKind, str] = Field(default_factory=dict)
    backend: Literal["native", "torch"] | None = None

    @model_validator(mode="after")
    def _complete(self) -> CompileReport:
        names = {task.name for task in self.tasks}
        if self.controls and not names:
            raise ValueError("a task that controls are compared on")
        for what, found in (
            ("over_read", self.over_read),
            *((control.name, control.scores) for control in self.controls),
        ):
            if not names <= found.keys():
                raise ValueError(f"{what}: a value for each of {sorted(names)}, got {sorted(found)}"[:400])
        if any(score <= 0 for score in self._perplexities()):
            raise ValueError(f"a {LOWER_IS_BETTER} above 0")
        return self

    def _perplexities(self) -> Iterator[float]:
        """Perplexities of the dense model and of controls. Those of the bundle are divided by some of them."""
        for task in self.tasks:
            if task.metric == LOWER_IS_BETTER:
                yield from () if task.dense is None else (task.dense,)
                yield from (control.scores[task.name] for control in self.controls)

    def dump(self) -> bytes:
        return self.model_dump_json(indent=1).encode() + b"\n"


def has_report(bundle: Bundle) -> bool:
    """Whether a bundle has one: those that were put together from others don't."""
    return REPORT in bundle.manifest.files


def read_report(bundle: Bundle) -> CompileReport:
    """The report that lies in a bundle."""
    content: Any = bundle.read(REPORT)
    try:
        return CompileReport.model_validate_json(content)
    except ValueError as error:
        raise BundleFormatError(REPORT, "content", "a compile report", error) from None

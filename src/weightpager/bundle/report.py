"""What a compile found out: ``report.json`` in the bundle."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from weightpager.bundle.manifest import Strict
from weightpager.bundle.reader import REPORT, Bundle
from weightpager.errors import BundleFormatError


class TaskScore(Strict):
    """A task's metric on ``items`` held-out items, of the dense model and through the engine.

    ``density`` is the share of the paged weights' blocks that the task keeps. ``dense`` is None where the held-out
    data is no longer what it was when the bundle was compiled.
    """

    name: str
    metric: str
    dense: float | None
    sparse: float
    density: float
    items: int


class ControlScore(Strict):
    """Something simpler that could do the same job: one shared mask, or the dense model quantised.

    Attributes:
        name: ``shared mask``, ``int8`` or ``int4``.
        resident_bytes: of paged weights, in memory at any time.
        scores: task → metric, on the same held-out items.
    """

    name: str
    resident_bytes: int
    scores: dict[str, float]


class Growth(Strict):
    """What tasks that were added to a bundle brought with them.

    Attributes:
        tasks: that were added.
        reused_bytes: of blocks that were in the bundle already.
        added_bytes: of pages that were appended.
        private_bytes: of the new tasks' own parameters.
    """

    tasks: list[str]
    reused_bytes: int
    added_bytes: int
    private_bytes: int


class FrontierPoint(Strict):
    """A strength of alignment that a compile tried.

    Attributes:
        alignment: λ; None for one shared mask.
        switch_bytes: of the blocks that an average switch loads; pages add over-read.
        loss: in points, against no alignment; None where it was not asked for.
    """

    alignment: float | None
    switch_bytes: float
    loss: float | None


class CompileReport(Strict):
    """One compile.

    Attributes:
        tasks: their scores.
        mean_overlap: over all ordered pairs of tasks.
        duality_gap: of the alignment, (bound − objective) ÷ bound over all paged weights.
        alignment: λ that the masks were chosen with; None for one shared mask.
        frontier: what was tried to find it, if the task file states a switch size or a loss.
        page_bytes: that the packer chose.
        page_fill: share of the places that hold a block.
        over_read: per task, share of its pages' bytes that it doesn't use.
        seconds: per stage.
        threads: that torch computed with.
        controls: what else could do the job, for `advise`.
        tied: tensors that the model uses under several names: canonical name → the other ones.
        growth: of the last compile onto an existing bundle; None if there was none.
    """

    tasks: list[TaskScore]
    mean_overlap: float
    duality_gap: float
    alignment: float | None
    frontier: list[FrontierPoint]
    page_bytes: int
    page_fill: float
    over_read: dict[str, float]
    seconds: dict[str, float]
    threads: int
    controls: list[ControlScore]
    tied: dict[str, list[str]] = Field(default_factory=dict)
    growth: Growth | None = None

    def dump(self) -> bytes:
        """The file's content."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def has_report(bundle: Bundle) -> bool:
    """Whether a bundle has one: those that were put together from others don't."""
    return REPORT in bundle.manifest.files


def read_report(bundle: Bundle) -> CompileReport:
    """The report that lies in a bundle.

    Raises:
        BundleFormatError: there is none, or it is damaged.
    """
    content: Any = bundle.read(REPORT)
    try:
        return CompileReport.model_validate_json(content)
    except ValueError as error:
        raise BundleFormatError(REPORT, "content", "a compile report", error) from None

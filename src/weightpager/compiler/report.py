"""What a compile found out: ``report.json`` in the bundle."""

from __future__ import annotations

from typing import Any

from weightpager.bundle import Bundle
from weightpager.bundle.manifest import Strict
from weightpager.bundle.reader import REPORT
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


class CompileReport(Strict):
    """One compile.

    Attributes:
        tasks: their scores.
        mean_overlap: over all ordered pairs of tasks.
        duality_gap: of the alignment, (bound − objective) ÷ bound over all paged weights.
        page_bytes: that the packer chose.
        page_fill: share of the places that hold a block.
        over_read: per task, share of its pages' bytes that it doesn't use.
        seconds: per stage.
        threads: that torch computed with.
    """

    tasks: list[TaskScore]
    mean_overlap: float
    duality_gap: float
    page_bytes: int
    page_fill: float
    over_read: dict[str, float]
    seconds: dict[str, float]
    threads: int

    def dump(self) -> bytes:
        """The file's content."""
        return self.model_dump_json(indent=1).encode() + b"\n"


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

"""What this package hands out: samples, and the reasons for those that cannot be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from weightpager.errors import WeightpagerError


class SampleUnavailable(WeightpagerError):  # noqa: N818 - says what the sample is, as Missing does
    """An archive, or a model or task made from it, cannot be had on this machine."""


@dataclass(frozen=True)
class Sample:
    """One task's data, split once and for all.

    Attributes:
        name: the task's name.
        kind: as a task file has it.
        classes: the labels, in the order of a classifier's outputs; empty for language modelling.
        train: what to learn from.
        validation: what to choose by.
        eval: what to report on.

    The files are JSON lines (``{"text": …, "label": …}``, ``{"tokens": […], "tags": […]}`` or ``{"image": …, "label":
    …}``), and plain text for language modelling.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    train: Path
    validation: Path
    eval: Path

    def entry(self) -> dict[str, str]:
        files = {"train": self.train, "validation": self.validation, "eval": self.eval}
        return {"kind": self.kind, **{split: str(path) for split, path in files.items()}}


@dataclass(frozen=True)
class Missing:
    name: str
    reason: str


def collect(makers: Iterable[tuple[str, Callable[[], Sample]]]) -> tuple[list[Sample], list[Missing]]:
    """Makes every sample that can be had, and says why for the others.

    Raises:
        SampleUnavailable: none can be had.
    """
    results = [_attempt(name, make) for name, make in makers]
    samples = [result for result in results if isinstance(result, Sample)]
    missing = [result for result in results if isinstance(result, Missing)]
    if not samples:
        reasons = "\n".join(f"  {lack.name}: {lack.reason}" for lack in missing)
        raise SampleUnavailable(f"expected at least one sample, got none:\n{reasons}")
    return samples, missing


def _attempt(name: str, make: Callable[[], Sample]) -> Sample | Missing:
    try:
        return make()
    except SampleUnavailable as error:
        return Missing(name, str(error))

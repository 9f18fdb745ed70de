"""What to use at a given memory, in words; none where chance alone may have made the difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightpager.bundle.report.choice import Choice
from weightpager.bundle.report.compile_report import DENSE, MASK
from weightpager.bundle.report.interval import UNKNOWN, holds_zero, items_to_tell, turned
from weightpager.config import format_enough, format_room

_HOW = {
    DENSE: " 'sparsity: 0' with as many more steps of 'training' makes that.",
    MASK: " 'alignment: inf' compiles that.",
    "int8": " 'sparsity: 0' with 'dtype: int8' compiles that.",
    "int4": " 'sparsity: 0' with 'dtype: int4' compiles that.",
    "int3": " Other libraries make that.",
    "int2": " Other libraries make that.",
}
"""How to make a control."""

_NAMES = {DENSE: "the dense model", MASK: "one shared mask"}


@dataclass(frozen=True)
class Verdict:
    """A bundle, its controls and a memory.

    Attributes:
        ours: the bundle.
        others: its controls.
        budget: bytes for paged weights.
        unit: the unit of losses.
        items: number of held-out items that they were measured on.
    """

    ours: Choice
    others: Sequence[Choice]
    budget: int
    unit: str
    items: int

    def words(self) -> str:
        """What to use, or that the data can't tell."""
        fitting = sorted((c for c in self.others if c.resident_bytes <= self.budget), key=lambda choice: choice.loss)
        best = next(iter(fitting), None)
        if self.ours.resident_bytes > self.budget:
            return self._too_small(best)
        if best is not None and best.told and best.loss <= self.ours.loss:
            return self._simpler(best)
        alike = next((choice for choice in fitting if not choice.told), None)
        return self._ours(best) if alike is None else self._open(alike)

    def _too_small(self, best: Choice | None) -> str:
        room = format_room(self.budget)
        if best is None:
            return f"Nothing that was measured fits {room}{self._more_sparsity()}"
        words = f"This bundle does not fit {room} of paged weights; {_called(best)} does and {_loses(best, self.unit)}."
        return words + _HOW.get(best.name, "")

    def _simpler(self, best: Choice) -> str:
        return (
            f"{self._room} use {_called(best)}: it {_loses(best, self.unit)} and loads nothing at a switch; "
            f"this bundle {_loses(self.ours)}.{_HOW.get(best.name, '')} "
            f"Paging pays with less memory{self._more_sparsity()}"
        )

    def _open(self, alike: Choice) -> str:
        gap = alike.loss - self.ours.loss
        needed = items_to_tell(gap, alike.gap, self.items) if alike.gap is not None and round(gap, 1) else None
        return (
            f"{self._room} this bundle and {_called(alike)}, which loads nothing at a switch, can't be told apart by "
            f"{self.items:,} held-out items: this bundle {_loses(self.ours, self.unit)}; {_called(alike)} "
            f"{_loses(alike)}.{_HOW.get(alike.name, '')}"
            + (f" About {needed:,} items would tell, if the difference is as large as it seems." if needed else "")
        )

    def _ours(self, best: Choice | None) -> str:
        gain = "nothing simpler that was measured fits"
        if best is not None:
            gain = f"{_called(best)}, the next best, {_loses(best).removeprefix('loses ')}"
        words = f"{self._room} use this bundle: it {_loses(self.ours, self.unit, ' against dense')}; {gain}."
        larger = [c for c in self.others if c.resident_bytes > self.budget and c.loss < self.ours.loss and c.told]
        if larger:
            least = min(larger, key=lambda choice: choice.resident_bytes)
            words += (
                f" With {format_enough(least.resident_bytes)} {_called(least)} would be better: it {_loses(least)}."
            )
        return words

    @property
    def _room(self) -> str:
        return f"With {format_enough(self.budget)} for paged weights"

    def _more_sparsity(self) -> str:
        """The end of a sentence that advises more sparsity, unless sparsity has cost accuracy already."""
        return "." if self.ours.lost else ": compile with more sparsity."


def _called(choice: Choice) -> str:
    return _NAMES.get(choice.name, choice.name)


def _loses(choice: Choice, unit: str = "", against: str = "") -> str:
    """How a choice compares with dense, in words: worse, better, or no different as far as the data tells."""
    loss, reach = round(choice.loss, 1), ""
    if choice.name == DENSE:
        return "loses nothing"
    if choice.interval is not None:
        if choice.interval == UNKNOWN:
            return "can't be told from dense by so few texts"
        if holds_zero(choice.interval):
            better, worse = f"{-choice.interval[0]:.1f} {unit}".rstrip(), f"{choice.interval[1]:.1f}"
            return f"does as well as dense, as far as the data tells ({better} better to {worse} worse)"
        reach = f" ({_ends(turned(choice.interval) if loss < 0 else choice.interval)})"
    if loss < 0:
        return f"beats dense by {-loss:.1f} {unit}".rstrip() + reach
    return f"loses {abs(loss):.1f} {unit}".rstrip() + against + reach


def _ends(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1f} to {interval[1]:.1f}"

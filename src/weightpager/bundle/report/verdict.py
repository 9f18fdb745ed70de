"""Which way to serve the tasks in a budget, in words: the most accurate; of those that chance may order, the cheapest.

A way is cheaper to run if an average switch loads less and, of those that load as much, if it needs the smaller budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightpager.bundle.report.choice import Choice
from weightpager.bundle.report.compile_report import DENSE, MASK
from weightpager.bundle.report.interval import UNKNOWN, holds_zero, items_to_tell, turned
from weightpager.config import format_enough, format_room, format_size

_NAMES = {DENSE: "all blocks in bfloat16", MASK: "one shared mask"}


@dataclass(frozen=True)
class Verdict:
    """A bundle, its controls and a budget.

    Attributes:
        ours: the bundle.
        others: its controls; those that weightpager can't compile are never advised.
        budget: bytes.
        unit: the unit of losses.
        items: number of held-out items that they were measured on.
    """

    ours: Choice
    others: Sequence[Choice]
    budget: int
    unit: str
    items: int

    def words(self) -> str:
        """What to use."""
        fitting = sorted((c for c in (self.ours, *self.others) if c.fits(self.budget)), key=_loss)
        if not fitting:
            return f"Nothing that was measured fits {self._stated}: {_needs(self.ours)}{self._more_sparsity()}"
        alike = [choice for choice in fitting if not choice.told_from(fitting[0])]
        chosen = min(alike, key=lambda choice: (choice.switch_bytes, choice.budget))
        rivals = [choice for choice in fitting if choice is not chosen]
        because = "".join((self._against(chosen, rivals), self._in_more_memory(chosen), self._in_less(chosen)))
        return f"With {self._stated} take {_needs(chosen)}; it {_loses(chosen, self.unit)}{because}"

    def _against(self, chosen: Choice, rivals: Sequence[Choice]) -> str:
        """Why not another one that fits: the bundle if it isn't chosen, else the best of its controls."""
        if not self.ours.fits(self.budget):
            return f". {_sentence(_needs(self.ours))}."
        rival = self.ours if chosen is not self.ours else next(iter(rivals), None)
        if rival is None:
            return ". Nothing simpler that was measured fits."
        told = f"; {_called(rival)} {_loses(rival)}."
        if chosen.told_from(rival):
            return told
        control = rival if chosen is self.ours else chosen
        gap = control.loss - self.ours.loss
        needed = items_to_tell(gap, control.gap, self.items) if round(gap, 1) else None
        more = f"; about {needed:,} would, if the difference is as large as it seems" if needed else ""
        return (
            f"{told} They can't be told apart by {self.items:,} held-out items{more}. The first is the cheaper to run."
        )

    def _in_more_memory(self, chosen: Choice) -> str:
        """What would be better, beyond chance, with a larger budget: what needs the least."""
        larger = [
            choice
            for choice in self.others
            if choice.budget is not None and not choice.fits(self.budget)
            if choice.loss < chosen.loss and choice.told_from(chosen)
        ]
        if not larger:
            return ""
        best = min(larger, key=lambda choice: choice.budget or 0)
        return f" Better, in more memory: {_needs(best)}; it {_loses(best)}."

    def _in_less(self, chosen: Choice) -> str:
        if chosen is self.ours or not self.ours.fits(self.budget):
            return ""
        return f" Paging pays with less memory{self._more_sparsity()}"

    def _more_sparsity(self) -> str:
        """The end of a sentence that advises more sparsity, unless sparsity has cost accuracy already."""
        return "." if self.ours.lost else ": compile with more sparsity."

    @property
    def _stated(self) -> str:
        return f"`--budget {format_room(self.budget).replace(' ', '')}`"


def _loss(choice: Choice) -> float:
    return choice.loss


def _called(choice: Choice) -> str:
    return _NAMES.get(choice.name, choice.name if not choice.line else f"all blocks in {choice.name}")


def _needs(choice: Choice) -> str:
    """A way, the line of the task file that compiles it, the budget that it needs and what its switches load."""
    line = f"{choice.line}, " if choice.line else ""
    needs = f"needs `--budget {format_enough(choice.budget or 0).replace(' ', '')}`"
    loads = (
        f"loads {format_size(choice.switch_bytes)} at a switch" if choice.switch_bytes else "loads nothing at a switch"
    )
    return f"{_called(choice)}: {line}{needs}, {loads}"


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def _loses(choice: Choice, unit: str = "") -> str:
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
    return f"loses {abs(loss):.1f} {unit}".rstrip() + reach


def _ends(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1f} to {interval[1]:.1f}"

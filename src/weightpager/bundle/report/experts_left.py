"""How many experts of each layer a task keeps, of a mixture of experts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from weightpager.bundle.reader import Bundle

_EXPERT = re.compile(r"(?P<layer>.+)\.experts\.(?P<number>\d+)\.[a-z]+_proj")
"""A paged weight of an expert, as `weightpager.nn.experts` names it."""


@dataclass(frozen=True)
class ExpertsLeft:
    """Experts by layer, of the layers that have any.

    Attributes:
        all: number of experts of each layer.
        tasks: number of experts that each task's routers may choose: those with blocks of each of their matrices.
    """

    all: list[int]
    tasks: dict[str, list[int]]

    @property
    def words(self) -> str:
        """The counts in words, task by task."""
        each = ", ".join(f"{task} {_span(left)}" for task, left in self.tasks.items())
        return f"{each}, of {_span(self.all)} in each layer"


def experts_left(bundle: Bundle) -> ExpertsLeft | None:
    """The experts that a bundle's tasks keep; None where no experts are paged."""
    matched = {weight.name: found for weight in bundle.manifest.weights if (found := _EXPERT.fullmatch(weight.name))}
    experts: dict[str, set[str]] = {}
    for found in matched.values():
        experts.setdefault(found["layer"], set()).add(found["number"])
    if not experts:
        return None
    tasks = {}
    for task in bundle.tasks:
        tables = bundle.tables(task)
        lost = {(found["layer"], found["number"]) for name, found in matched.items() if not len(tables[name].locations)}
        tasks[task] = [len(numbers) - sum(layer == each for each, _ in lost) for layer, numbers in experts.items()]
    return ExpertsLeft([len(numbers) for numbers in experts.values()], tasks)


def _span(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{most}" if least == most else f"{least} to {most}"

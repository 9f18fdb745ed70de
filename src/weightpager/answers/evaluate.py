"""A task's metric on labelled inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from weightpager.answers.kinds import kind_of
from weightpager.answers.model import Floats, Integers
from weightpager.answers.score import Outcomes, Score
from weightpager.bundle import TaskKind

_Given = TypeVar("_Given")


def evaluate(logits: Callable[[_Given], Floats], batches: Iterable[tuple[_Given, Integers]], kind: TaskKind) -> Score:
    """Score whatever gives a batch's logits.

    Args:
        logits: of a batch's inputs, [items, classes] or [texts, tokens, classes].
        batches: inputs and their labels, [items] or [texts, tokens]; of language models the labels are the input ids.
        kind: of the task.

    Raises:
        ValueError: no label counts.
    """
    sums: list[float] = []
    counts: list[int] = []
    for inputs, labels in batches:
        found = kind_of(kind).measured(logits(inputs), labels)
        sums += found[0]
        counts += found[1]
    return Score.of(kind, Outcomes(np.array(sums, np.float64), np.array(counts, np.int64)))

"""A task's metric on labelled inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from weightpager.answers.kinds import kind_of
from weightpager.answers.score import Outcomes, Score
from weightpager.bundle import TaskKind
from weightpager.bundle.format.manifest import TextMetric

_Given = TypeVar("_Given")


def evaluate(
    answer: Callable[[_Given], Any],
    batches: Iterable[tuple[_Given, Any]],
    kind: TaskKind,
    metrics: Sequence[TextMetric] = (),
) -> Score:
    """Score answers to labelled batches.

    Args:
        answer: gives what the kind measures of a batch's inputs: logits, [items, classes] or [texts, tokens, classes],
            or texts; see `Kind.answering`.
        batches: inputs and their labels, [items] or [texts, tokens]; of language models the labels are the input ids,
            and of generated texts the texts that are wanted.
        kind: of the task.
        metrics: that the task chooses; empty where its kind has one.

    Raises:
        ValueError: no label counts.
    """
    sums: list[Any] = []
    counts: list[int] = []
    for inputs, labels in batches:
        batch_sums, batch_counts = kind_of(kind).measured(answer(inputs), labels, metrics)
        sums += batch_sums
        counts += batch_counts
    columns = np.array(sums, np.float64).reshape(len(sums), len(metrics) or 1)
    return Score.of(kind, Outcomes(columns[:, 0], np.array(counts, np.int64), columns[:, 1:]), metrics)

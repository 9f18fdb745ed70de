"""The metric of a task, the same for a dense model, a masked one and an engine's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from weightpager.answers.kinds import Metric, kind_of
from weightpager.bundle import TaskKind
from weightpager.bundle.format.manifest import TextMetric


@dataclass(frozen=True)
class Outcomes:
    """The result of each text, window or image, so that two models can be compared item by item.

    Attributes:
        sums: float64 ``[N]``: right answers; of a language model, nats.
        counts: int64 ``[N]``: labels that count.
        others: float64 ``[N, M]``: sums by the other metrics that the task chooses.
    """

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    others: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))

    @classmethod
    def none(cls) -> Outcomes:
        return cls(np.zeros(0), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Score:
    """A metric's mean over ``items``: texts, images (accuracy), labelled words (token accuracy) or predicted tokens.

    ``outcomes`` are those of each text, window or image, in the order of the batches; ``others`` are the values of the
    other metrics that the task chooses.
    """

    metric: Metric
    value: float
    items: int
    outcomes: Outcomes = field(default_factory=Outcomes.none, compare=False, repr=False)
    others: Mapping[Metric, float] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: TaskKind, outcomes: Outcomes, metrics: Sequence[TextMetric] = ()) -> Score:
        """The score of a task of this kind with these outcomes, by ``metrics`` where the task chooses them.

        Raises:
            ValueError: no label counts.
        """
        items = int(outcomes.counts.sum())
        if items == 0:
            raise ValueError("expected at least one label to evaluate, got none")
        others = dict(zip(metrics[1:], (outcomes.others.sum(0) / items).tolist(), strict=True)) if metrics else {}
        metric: Metric = metrics[0] if metrics else kind_of(kind).metric
        return cls(metric, kind_of(kind).value(sum(outcomes.sums.tolist()) / items), items, outcomes, others)

    @property
    def higher_is_better(self) -> bool:
        """False for perplexity."""
        return self.metric != "perplexity"


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

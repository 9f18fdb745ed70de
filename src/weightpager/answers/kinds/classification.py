"""What classifying texts and classifying images have in common."""

from __future__ import annotations

from collections.abc import Sequence

from weightpager.answers.decoding import softmax
from weightpager.answers.kinds.encoding_kind import EncodingKind
from weightpager.answers.kinds.kind import Prediction
from weightpager.answers.model import Floats
from weightpager.answers.work import Classified, Outcome
from weightpager.bundle import TaskEntry


class Classification(EncodingKind):
    """One class for each input."""

    metric = "accuracy"

    def outcomes(self, logits: Floats, works: Sequence[object]) -> list[Outcome]:  # noqa: ARG002 - of any input
        """Probabilities of the task's classes."""
        return [Classified(tuple(row)) for row in softmax(logits).tolist()]

    def prediction(self, task: TaskEntry, given: str, outcome: Classified) -> Prediction:
        """The likeliest class."""
        score = max(outcome.probabilities)
        return Prediction(given, task.classes[outcome.probabilities.index(score)], score)

"""Texts that are continued."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from weightpager.answers.kinds.kind import IGNORED, Kind, Prediction
from weightpager.answers.softmax import log_softmax
from weightpager.answers.token_reader import TokenReader
from weightpager.answers.work import Generate, Generated
from weightpager.bundle import TaskEntry
from weightpager.bundle.format.manifest import TextMetric


class LanguageModeling(Kind):
    """Continues a prompt; is measured by how well it predicts each next token."""

    metric = "perplexity"
    writes = True

    def read(self, reader: TokenReader, task: TaskEntry, given: str, max_new_tokens: int) -> Generate:
        """A prompt. It is never cut, since its end is what a continuation continues."""
        return Generate(reader.prompt(given, task, chat=task.takes_conversations), max_new_tokens)

    def prediction(self, task: TaskEntry, given: str, outcome: Generated) -> Prediction:  # noqa: ARG002 - no classes
        """The continuation, whole: where a prompt ends in a word, it mostly begins with a blank."""
        return Prediction(given, outcome.text, completion=outcome.text, tokens=outcome.tokens)

    def measured(self, found: Any, labels: Any, metrics: Sequence[TextMetric] = ()) -> tuple[list[Any], list[int]]:  # noqa: ARG002
        """Nats of each window: the logits of a token are those of the next one."""
        nats, counts = [], []
        for own, wanted in zip(found, labels[:, 1:], strict=True):  # one at a time: a large vocabulary takes memory
            counted = wanted != IGNORED
            logs = log_softmax(own[:-1][counted])
            nats.append(-float(logs[np.arange(len(logs)), wanted[counted]].sum(dtype=np.float64)))
            counts.append(int(counted.sum()))
        return nats, counts

    def value(self, mean: float) -> float:
        """The perplexity."""
        with np.errstate(over="ignore"):  # a hopeless model has infinite perplexity
            return float(np.exp(mean))


KIND = LanguageModeling()

"""Texts, each of one class."""

from __future__ import annotations

from weightpager.answers.kinds.classification import Classification
from weightpager.answers.token_reader import TokenReader
from weightpager.answers.work import Classify
from weightpager.bundle import TaskEntry


class TextClassification(Classification):
    """Finds a text's class."""

    def read(self, reader: TokenReader, task: TaskEntry, given: str, max_new_tokens: int) -> Classify:  # noqa: ARG002
        """A text, cut where the task was compiled to cut."""
        text = reader.cut(given, task.max_length)
        return Classify(text.ids, truncated=text.cut > 0)


KIND = TextClassification()

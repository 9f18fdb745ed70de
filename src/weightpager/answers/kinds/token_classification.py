"""Texts, each word of which has a tag."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightpager.answers.decoding import softmax
from weightpager.answers.kinds.encoding_kind import EncodingKind
from weightpager.answers.kinds.kind import Prediction
from weightpager.answers.model import Floats, Integers
from weightpager.answers.token_reader import TokenReader
from weightpager.answers.work import Outcome, Tag, Tagged
from weightpager.bundle import TaskEntry


class TokenClassification(EncodingKind):
    """Finds a tag for every word, from its first token. Words that were cut off have none."""

    metric = "token accuracy"

    def read(self, reader: TokenReader, task: TaskEntry, given: str, max_new_tokens: int) -> Tag:  # noqa: ARG002
        """A text, split at blanks and cut where the task was compiled to cut."""
        words = given.split()
        text, starts = reader.cut_words(words, task.max_length)
        return Tag(text.ids, starts, tuple(words), truncated=text.cut > 0)

    def outcomes(self, logits: Floats, works: Sequence[Tag]) -> list[Outcome]:
        """Tags by the number of their class."""
        shares = softmax(logits)
        best, choice = shares.max(-1), np.argmax(shares, -1)  # [texts, tokens]
        return [_tagged(text, best[row], choice[row]) for row, text in enumerate(works)]

    def prediction(self, task: TaskEntry, given: str, outcome: Tagged) -> Prediction:
        """The words with their tags."""
        tags = tuple((word, task.classes[number]) for word, number, _ in outcome.tags)
        return Prediction(given, " ".join(f"{word}/{tag}" for word, tag in tags), None, tags)


def _tagged(text: Tag, best: Floats, choice: Integers) -> Tagged:
    first = [(word, place) for place, word in enumerate(text.starts) if word is not None]
    return Tagged(tuple((text.words[word], int(choice[place]), float(best[place])) for word, place in first))


KIND = TokenClassification()

"""A text and what its model goes on with, one token at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from weightpager.answers.model import Integers, TaskModel
from weightpager.answers.work import Sampling


def likeliest(model: TaskModel, text: Integers) -> Iterator[int]:
    """The tokens that a text, [1, tokens], goes on with, each the likeliest; the first step reads the text, too.

    It never ends: the end of a text is a token as any other.
    """
    drawn: list[int] = []

    def see(tokens: Integers) -> npt.NDArray[np.bool_]:
        drawn.append(int(tokens[0]))
        return np.array([True])  # one at a time

    texts = model.grow(text, np.ones_like(text), Sampling(temperature=0), 0)
    while texts.unread:
        texts.read_piece()
    while True:
        texts.grow(1, see)
        yield drawn[-1]

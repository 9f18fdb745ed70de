"""How long a text of a task may be, and whether it is read in pieces."""

from __future__ import annotations

from dataclasses import dataclass

from weightpager.answers.generation.forward_size import FORWARD_TOKENS, Activations

IN_PIECES = 8192
"""Tokens of the longest text, unless told otherwise, of a task that reads in pieces, others having turns between."""


@dataclass(frozen=True)
class TextLimit:
    """What one text may ask for.

    Attributes:
        tokens: number of tokens of the longest text.
        in_pieces: whether the model reads texts in pieces.
        activations: the bytes that a forward takes, of the task that takes most.
    """

    tokens: int
    in_pieces: bool
    activations: Activations

    def cached(self, tokens: int) -> bool:
        """Whether a text whose vector is wanted is read in pieces, and so needs a cache."""
        return self.in_pieces and not self.activations.fit(1, tokens, tokens)


def default_limit(context: int | None, length: int | None, *, in_pieces: bool) -> int:
    """Tokens of the longest text of a task, unless told otherwise.

    A model that reads a text at once lets nobody have a turn meanwhile: there it is what one forward should take.

    Args:
        context: that the model can read; None where it reads images.
        length: that the task was compiled with; what it is cut to is read in any case.
        in_pieces: whether the model reads the task's texts in pieces.
    """
    most = max(IN_PIECES if in_pieces else FORWARD_TOKENS, length or 0)
    return most if context is None else min(context, most)

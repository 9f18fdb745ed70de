"""How long a text may be, and what is kept of those that have begun."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from weightpager.answers.generation.forward_size import FORWARD_TOKENS, Activations

IN_PIECES = 8192
"""Tokens of the longest text, unless told otherwise, of a model that reads in pieces, others having turns between."""

_TEXTS = 8
"""Longest texts that caches hold at a time, where no part of the budget is reserved for caches."""


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

    def room(self, batch: int, new_tokens: int) -> int:
        """Tokens that caches may hold together, where that isn't a part of the budget: as batches of the longest texts.

        Args:
            batch: number of texts that run together.
            new_tokens: number of tokens that a text may be continued by.
        """
        return max(batch, _TEXTS) * (self.tokens + new_tokens)


def default_limit(context: int | None, lengths: Iterable[int | None], *, in_pieces: bool) -> int:
    """Tokens of the longest text, unless told otherwise.

    A model that reads a text at once lets nobody have a turn meanwhile: there it is what one forward should take.

    Args:
        context: that the model can read; None where it reads images.
        lengths: that the tasks were compiled with; what they are cut to is read in any case.
        in_pieces: whether the model reads texts in pieces.
    """
    usual = IN_PIECES if in_pieces else FORWARD_TOKENS
    most = max(usual, *(length or 0 for length in lengths))
    return most if context is None else min(context, most)

"""How large one forward may be: short enough that others soon get a turn, and bounded in memory."""

from __future__ import annotations

from dataclasses import dataclass

PIECE = 256
"""Tokens of a text that are read at once at most; others may have a turn before the next ones."""

FORWARD_PAIRS = 2**19
"""Tokens of a piece, of all texts, times those that they attend to: behind so many more, attention is most of the work.
Of models that fit beside others, two cores read such a piece in about a quarter of a second."""

_SMALLEST = 16
"""Tokens of a text that are read at once however long it is: fewer would take hardly less time."""

FORWARD_TOKENS = 2048
"""Tokens of all texts that are read at once, padding included."""

ACTIVATION_BYTES = 128 * 2**20
"""Bytes that a forward's activations may take, by estimate, unless a single text takes more."""


def mostly_padding(texts: int, longest: int, shortest: int) -> bool:
    """Whether so many texts are too unlike in length to be read at once, by their tokens."""
    return texts * longest > PIECE and longest > 2 * shortest


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward takes beside weights and caches.

    They are an upper bound where attention keeps all its scores.

    Attributes:
        per_token: bytes for each token that is read.
        per_pair: bytes for each token that such a token attends to.
    """

    per_token: int
    per_pair: int

    @classmethod
    def of_layer(cls, hidden: int, intermediate: int, heads: int, itemsize: int) -> Activations:
        """What one transformer layer takes.

        Args:
            hidden: width of the residual.
            intermediate: width of the feed-forward part.
            heads: whose scores of attention are kept whole; 0 if no head's are.
            itemsize: bytes of a number that the layer computes with.
        """
        # The residual, its norm, queries, keys, values and what attention gives; gate, up and their product.
        return cls(itemsize * (8 * hidden + 3 * intermediate), itemsize * heads)

    def bytes(self, texts: int, tokens: int, length: int) -> int:
        """Bytes of a forward that reads so many tokens of each text, the last ones of ``length``."""
        return texts * tokens * (self.per_token + length * self.per_pair)

    def fit(self, texts: int, tokens: int, length: int) -> bool:
        """Whether such a forward keeps within its bounds."""
        return texts * tokens <= FORWARD_TOKENS and self.bytes(texts, tokens, length) <= ACTIVATION_BYTES

    def piece(self, texts: int, read: int, length: int) -> int:
        """How many tokens of each text come next: it follows from these numbers alone, as do an answer's bits.

        Args:
            texts: in the batch.
            read: tokens of each so far.
            length: of each, padding included; more than ``read``.
        """
        tokens = PIECE
        while tokens > _SMALLEST and texts * tokens * (read + tokens) > FORWARD_PAIRS:
            tokens //= 2
        while tokens > 1 and not self.fit(texts, tokens, read + tokens):
            tokens //= 2
        return min(tokens, length - read)

"""How likely each token of an answer was, and which others were likeliest in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from weightpager.answers.work import TokenLogprob
from weightpager.readers.token_bytes import TokenBytes

if TYPE_CHECKING:
    from weightpager.answers.model import Floats

_LEAST = -9999.0
"""What OpenAI gives for a token that can't come."""


class AnswerLogprobs:
    """The tokens of one answer whose text hasn't been shown yet.

    Logprobs are those of the model's own distribution: of its logits before biases, penalties, temperature, ``top_p``
    and the tokens that a schema allows.
    """

    def __init__(self, words: TokenBytes, top: int) -> None:
        """``top`` of the likeliest tokens are told in each place."""
        self._words, self._top = words, top
        self._waiting: list[TokenLogprob] = []

    def add(self, logits: Floats, token: int, start: int) -> None:
        """Add the token that was taken by these logits, [words]; its text starts behind so many characters."""
        shares = log_softmax(logits)
        likeliest = np.argpartition(-shares, min(self._top, len(shares) - 1))[: self._top]
        order = sorted(likeliest.tolist(), key=lambda each: (-shares[each], each))
        top = tuple((self._words.of(each), self._share(shares, each)) for each in order)
        self._waiting.append(TokenLogprob(self._words.of(token), self._share(shares, token), top, start))

    def take(self, shown: float) -> tuple[TokenLogprob, ...]:
        """The tokens since the last call whose text starts among so many characters."""
        taken = tuple(each for each in self._waiting if each.start < shown)
        self._waiting = self._waiting[len(taken) :]
        return taken

    def _share(self, shares: npt.NDArray[Any], token: int) -> float:
        return max(_LEAST, float(shares[token]))


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Logarithms of probabilities over the last axis."""
    below = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    found: npt.NDArray[np.float64] = below - np.log(np.exp(below).sum(-1, keepdims=True))
    return found

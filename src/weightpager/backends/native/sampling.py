"""How the next tokens are drawn."""

from __future__ import annotations

import numpy as np

from weightpager.answers.model import Floats, Integers
from weightpager.answers.softmax import softmax
from weightpager.answers.work import Sampling


class Sampler:
    """Draws a batch's tokens. A seed is this batch's alone, however many others draw meanwhile."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        # numpy takes no negative seed.
        self._random = np.random.default_rng(None if sampling.seed is None else sampling.seed % 2**64)

    def draw(self, logits: Floats) -> Integers:
        """The next token of each text, [texts], of logits [texts, words]."""
        if self._sampling.temperature == 0:
            likeliest: Integers = np.argmax(logits, -1)
            return likeliest
        below = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        with np.errstate(over="ignore"):  # to -inf: such a word has no share
            shares = softmax(below / self._sampling.temperature)
        if self._sampling.top_p < 1:
            shares = np.stack([_likeliest(row, self._sampling.top_p) for row in shares])
        points = self._random.random(len(shares))
        return np.array([_at(row, point) for row, point in zip(shares, points, strict=True)], np.int64)


def _likeliest(shares: Floats, most: float) -> Floats:
    """The shares of the likeliest words that make up ``most``, at least one; 0 of others."""
    order = np.argsort(-shares, kind="stable")
    before = np.cumsum(shares[order]) - shares[order]
    kept = order[(before < most) | (np.arange(len(order)) == 0)]
    likely = np.zeros_like(shares)
    likely[kept] = shares[kept]
    return likely


def _at(shares: Floats, point: float) -> int:
    """The word in whose share a point from 0 to 1 lies."""
    ends = np.cumsum(shares)
    return int(min(np.searchsorted(ends, point * ends[-1], side="right"), np.flatnonzero(shares)[-1]))

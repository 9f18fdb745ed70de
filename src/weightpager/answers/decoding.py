"""How a model goes on with texts, whatever backend runs it: prompts in pieces, then one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from weightpager.answers.work import Sampling

if TYPE_CHECKING:
    from weightpager.answers.model import Floats, Integers, ModelLimits

See: TypeAlias = "Callable[[Integers], npt.NDArray[np.bool_]]"
"""Gets the next token of each text, [texts]; tells which texts are over, or all of them for a pause."""

Weigh: TypeAlias = "Callable[[Floats], Floats]"
"""Gets the logits of each text's next token, [texts, words]; gives those to draw it by, in an array of its own."""

Draw: TypeAlias = "Callable[[Floats], Integers]"
"""The next token of each text, [texts], of logits [texts, words]."""


class Piece(Protocol):
    """Keys and values of some tokens of one text, which nobody changes.

    Attributes:
        tokens: how many.
        bytes: that they take.
    """

    @property
    def tokens(self) -> int: ...

    @property
    def bytes(self) -> int: ...


class KeptPieces(Protocol):
    """The pieces of one text that are kept, each behind the other."""

    @property
    def end(self) -> int:
        """Where the next piece to be kept begins."""

    def find(self, stop: int, *, whole: bool) -> tuple[Piece, int] | None:
        """The next piece, and how many of its tokens the text has, too; None where there is none.

        No more are wanted than those before ``stop``; where they are wanted ``whole``, all up to there and no part.
        """

    def keep(self, piece: Piece, *, whole: bool) -> None:
        """Keep the piece that begins at `end`; others can stand behind it if it is whole."""

    def go_on(self, ids: Integers) -> None:
        """The text has grown: its tokens, int64 [tokens], begin with those of before."""


class Reading(Protocol):
    """What a backend has read of a batch of texts, and keeps of it: each forward goes on where the last one stopped.

    Forwards may lie far apart, and other texts may be read between if it is `stoppable`. Ids and masks are int64
    [texts, tokens], from each text's beginning; shorter texts are padded on the left, where their mask is 0.
    """

    @property
    def stoppable(self) -> bool:
        """Whether other texts may be read between two forwards, and texts let go."""

    @property
    def exact(self) -> bool:
        """Whether a token's numbers are the same bits however many are read with it.

        Then a text goes on behind any of its tokens as if all had been read at once, generated ones included.
        """

    @property
    def done(self) -> int:
        """Tokens of each text that have been read."""

    def hidden(self, ids: Integers, mask: Integers) -> Floats:
        """Read on to the end; the last hidden states of the tokens that were read now, [texts, tokens, width]."""

    def next(self, ids: Integers, mask: Integers, draw: Draw | None) -> Integers:
        """Read on to the end; what is drawn of the last tokens' logits, or the likeliest tokens, [texts]."""

    def keep(self, texts: Sequence[int]) -> None:
        """Let go of all but these; only if `stoppable`."""

    def piece(self, start: int, *, whole: bool) -> Piece | None:
        """What has been read of a single text from ``start`` on, copied; None where that can't be taken over.

        A ``whole`` one ends where another piece can begin, maybe before the last token.
        """

    def take_over(self, piece: Piece, tokens: int) -> None:
        """Go on as if the piece's first tokens, so many, had been read now; it is of the same task.

        They are all of them unless it is `exact`.
        """


class GrowingTexts:
    """A batch of texts that a model goes on with, in as many steps as their reader likes.

    Steps may lie far apart, and other texts may be read between. Long prompts are read in pieces, so that memory grows
    with a piece times a text's length, not with its square.

    Attributes:
        ids: int64 [texts, tokens], prompts and what has been generated.
        stoppable: whether `grow` may be stopped and called again, and texts let go.
    """

    def __init__(
        self, reading: Reading, limits: ModelLimits, ids: Integers, mask: Integers, sampling: Sampling, pad: int
    ) -> None:
        """Nothing has been read. Arguments are those of `TaskModel.grow`."""
        self.ids, self._mask, self._prompt = ids, mask, ids.shape[1]
        self.stoppable = reading.stoppable
        self._reading, self._limits, self._pad = reading, limits, pad
        self._sampler, self._plain = Sampler(sampling), sampling.plain
        self._kept: KeptPieces | None = None

    @property
    def unread(self) -> int:
        """Tokens of each prompt that `read_piece` should read before they grow; the last piece is read as they do."""
        left = self._prompt - self._reading.done
        return max(0, left - self._piece()) if self._limits.in_pieces and left > 0 else 0

    def take_over(self, kept: KeptPieces) -> None:
        """Take over what is kept of a single text's prompt, and keep what is read of it from now on.

        Its last token is read in any case: what follows it isn't kept.
        """
        exact = self._exact
        while left := (self._prompt - 1 - self._reading.done if exact else self.unread and self._piece()):
            found = kept.find(self._reading.done + left, whole=not exact)
            if found is None:
                break
            self._reading.take_over(*found)
        self._kept = kept

    def read_piece(self) -> None:
        """Read one more piece; some of it is `unread`."""
        stop = self._reading.done + self._piece()
        self._reading.hidden(self.ids[:, :stop], self._mask[:, :stop])
        self._keep(whole=True)

    def keep_rest(self) -> None:
        """Keep what has been read since the last piece, what was generated included; the text is over."""
        if self._exact and self._kept is not None and self._reading.done:
            self._kept.go_on(self.ids[0])
            self._keep(whole=True)
            self._keep(whole=False)

    def _keep(self, *, whole: bool) -> None:
        if self._kept is not None and (piece := self._reading.piece(self._kept.end, whole=whole)) is not None:
            self._kept.keep(piece, whole=whole)

    @property
    def _exact(self) -> bool:
        return self._reading.exact and self._limits.in_pieces and len(self.ids) == 1

    def grow(self, most: int, see: See, weigh: Weigh | None = None) -> None:
        """Read what is left, and go on by so many tokens at most, or until all texts are over.

        Args:
            most: tokens of each text.
            see: is told of each token. After a pause, texts that are `stoppable` can grow on.
            weigh: is asked before each token.
        """
        over = np.zeros(len(self.ids), bool)
        for _ in range(most):
            draw = None if self._plain and weigh is None else partial(self._draw, weigh)
            tokens = np.where(over, self._pad, self._reading.next(self.ids, self._mask, draw))
            self.ids = np.concatenate([self.ids, tokens[:, None]], 1)
            self._mask = np.concatenate([self._mask, np.ones_like(tokens[:, None])], 1)
            over = over | see(tokens)
            if over.all():
                return

    def _draw(self, weigh: Weigh | None, logits: Floats) -> Integers:
        said = self.ids[:, self._prompt :]
        return self._sampler.draw(logits if weigh is None else weigh(logits), said)

    def keep(self, texts: Sequence[int]) -> None:
        """Let go of all but these; only if `stoppable`."""
        places = list(texts)
        self.ids, self._mask = self.ids[places], self._mask[places]
        self._reading.keep(places)

    def _piece(self) -> int:
        return self._limits.activations.piece(len(self.ids), self._reading.done, self._prompt)


class TextPieces:
    """One text that is read in pieces for its vector."""

    def __init__(self, reading: Reading, limits: ModelLimits, ids: Integers) -> None:
        """Nothing has been read of ``ids``, [tokens]."""
        self._reading, self._limits, self._ids = reading, limits, ids[None]

    @property
    def over(self) -> bool:
        """Whether all of it has been read."""
        return bool(self._reading.done == self._ids.shape[1])

    def read_piece(self) -> Floats:
        """The last hidden states of the next piece's tokens, [tokens, width]."""
        done = self._reading.done
        ids = self._ids[:, : done + self._limits.activations.piece(1, done, self._ids.shape[1])]
        piece: Floats = self._reading.hidden(ids, np.ones_like(ids))[0]
        return piece


class Sampler:
    """Draws a batch's tokens. A seed is this batch's alone, however many others draw meanwhile."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        # numpy takes no negative seed.
        self._random = np.random.default_rng(None if sampling.seed is None else sampling.seed % 2**64)

    def draw(self, logits: Floats, said: Integers | None = None) -> Integers:
        """The next token of each text, [texts], of logits [texts, words]; ``said`` are those before it, if any."""
        logits = self._adjusted(logits, said)
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

    def _adjusted(self, logits: Floats, said: Integers | None) -> Floats:
        sampling = self._sampling
        if not (sampling.bias or sampling.penalises):
            return logits
        adjusted: Floats = logits.copy()
        for token, bias in sampling.bias:
            adjusted[:, token] += bias
        for row, tokens in zip(adjusted, said if sampling.penalises and said is not None else (), strict=False):
            found, times = np.unique(tokens, return_counts=True)
            row[found] -= sampling.frequency_penalty * times + sampling.presence_penalty
        return adjusted


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Probabilities over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    found: npt.NDArray[Any] = powers / powers.sum(-1, keepdims=True)
    return found


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

"""`NativeModel`: what answers need of a task that native code runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightpager.answers.model import Activations, CacheSize, Floats, Inputs, Integers, ModelLimits, See
from weightpager.answers.softmax import softmax
from weightpager.answers.work import Sampling
from weightpager.backends.native.program import KVCache
from weightpager.backends.native.task import NativeTask, positions
from weightpager.errors import BundleFormatError
from weightpager.graph.file import graph_file


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


_UNBOUNDED = 2**62


@dataclass(frozen=True)
class NativeModel:
    """Implements `weightpager.answers.model.TaskModel`.

    Attributes:
        task: the task that is run.
        limits: the limits of the bundle's model.
        eos_token_ids: tokens that end a text.
        narrow: whether keys and values of earlier tokens are kept in float16.
    """

    task: NativeTask
    limits: ModelLimits
    eos_token_ids: frozenset[int]
    narrow: bool

    @property
    def vocab_size(self) -> int:
        return self.limits.vocab_size

    @property
    def context(self) -> int:
        return self.limits.context

    @property
    def uniform_length(self) -> int | None:
        return self.limits.uniform_length

    @property
    def in_pieces(self) -> bool:
        return self.limits.in_pieces

    @property
    def activations(self) -> Activations:
        return self.limits.activations

    @property
    def cache(self) -> CacheSize:
        return self.task.cache

    def logits(self, inputs: Inputs) -> Floats:
        outputs = self.below(self._with_positions(inputs))
        return self.head(outputs["hidden"]) if self.task.has_head else outputs["logits"]

    def hidden(self, inputs: Inputs) -> Floats:
        return self.below(self._with_positions(inputs))["hidden"]

    def below(self, inputs: Inputs, cache: KVCache | None = None) -> dict[str, Floats]:
        """`NativeTask.below`, whose errors are the caller's unless the model can read these inputs.

        Raises:
            BundleFormatError: it can, and its graph can't take them.
        """
        try:
            return self.task.below(inputs, cache)
        except (ValueError, IndexError) as error:
            if self._reads(inputs, 0 if cache is None else cache.tokens):
                raise self._graphs(error) from error
            raise

    def head(self, hidden: Floats) -> Floats:
        """`NativeTask.head` of what `below` gave.

        Raises:
            BundleFormatError: its graph can't take that.
        """
        try:
            return self.task.head(hidden)
        except (ValueError, IndexError) as error:
            raise self._graphs(error) from error

    def _graphs(self, error: Exception) -> BundleFormatError:
        """What shapes don't show, such as a number in a graph that is no row of a table."""
        expected = "what runs on inputs that the model can read"
        return BundleFormatError(graph_file(self.task.graph.kind), "nodes", expected, error)

    def _reads(self, inputs: Inputs, earlier: int) -> bool:
        """Whether these are `Inputs` that the model can read behind ``earlier`` tokens, as far as it says."""
        if "pixel_values" in inputs:
            pixels = inputs["pixel_values"]
            return pixels.dtype == np.float32 and pixels.ndim == 4
        ids, mask = (np.asarray(inputs.get(name)) for name in ("input_ids", "attention_mask"))
        if not (ids.dtype == mask.dtype == np.int64 and ids.ndim == 2 and ids.size):
            return False
        end = earlier + ids.shape[1]
        within = end <= self.context and 0 <= ids.min() <= ids.max() < self.vocab_size
        return bool(within and mask.shape == (len(ids), end) and np.isin(mask, (0, 1)).all())

    def grow(self, ids: Integers, mask: Integers, sampling: Sampling, pad: int, most: int | None = None) -> NativeTexts:
        return NativeTexts(self, _Read(self, ids, mask, most), Sampler(sampling), pad)

    def pieces(self, ids: Integers) -> NativePieces:
        return NativePieces(_Read(self, ids[None], np.ones_like(ids[None]), 0))

    def _with_positions(self, inputs: Inputs) -> Inputs:
        if not self.task.has_head or "attention_mask" not in inputs:
            return inputs
        return {**inputs, "position_ids": positions(inputs["attention_mask"])}


class _Read:
    """Texts of a decoder, and what has been read of them.

    Attributes:
        ids, mask: token ids and attention mask, int64 [texts, tokens].
        done: number of tokens of each text that have been read.
    """

    def __init__(self, model: NativeModel, ids: Integers, mask: Integers, most: int | None) -> None:
        """Nothing has been read; at most ``most`` tokens come to each text, None for any number."""
        self.ids, self.mask, self.done = ids, mask, 0
        self._model = model
        texts, tokens = ids.shape
        planned = _UNBOUNDED if most is None else model.cache.bytes(texts, tokens + most)
        self._cache = KVCache(planned, float16=model.narrow)

    @property
    def activations(self) -> Activations:
        """Bytes that a forward takes."""
        return self._model.limits.activations

    def piece(self, length: int) -> int:
        """How many of the first ``length`` tokens the next forward reads."""
        return self.activations.piece(len(self.ids), self.done, length)

    def read(self, stop: int) -> Floats:
        """Read up to a token; the hidden states of those that were read now, [texts, tokens, width]."""
        inputs = {
            "input_ids": self.ids[:, self.done : stop],
            "attention_mask": self.mask[:, :stop],
            "position_ids": positions(self.mask[:, :stop])[:, self.done :],
        }
        hidden = self._model.below(inputs, self._cache)["hidden"]
        self.done = stop
        return hidden

    def append(self, tokens: Integers) -> None:
        """One more token of each text, [texts]."""
        self.ids = np.concatenate([self.ids, tokens[:, None]], 1)
        self.mask = np.concatenate([self.mask, np.ones_like(tokens[:, None])], 1)

    def keep(self, texts: Sequence[int]) -> None:
        """Let go of all but these."""
        places = list(texts)
        self.ids, self.mask = self.ids[places], self.mask[places]
        if self._cache.tokens:
            self._cache.select(places)


class NativeTexts:
    """Implements `weightpager.answers.model.GrowingTexts`."""

    stoppable = True

    def __init__(self, model: NativeModel, read: _Read, sampler: Sampler, pad: int) -> None:
        self._read = read
        self._head, self._sampler, self._pad = model.head, sampler, pad
        self._prompt = read.ids.shape[1]

    @property
    def unread(self) -> int:
        left = self._prompt - self._read.done
        return max(0, left - self._read.piece(self._prompt)) if left > 0 else 0

    def read_piece(self) -> None:
        self._read.read(self._read.done + self._read.piece(self._prompt))

    def grow(self, most: int, see: See) -> None:
        over = np.zeros(len(self._read.ids), bool)
        for _ in range(most):
            last = self._read.read(self._read.ids.shape[1])[:, -1:]
            tokens = np.where(over, self._pad, self._sampler.draw(self._head(last)[:, 0]))
            self._read.append(tokens)
            over = over | see(tokens)
            if over.all():
                return

    def keep(self, texts: Sequence[int]) -> None:
        self._read.keep(texts)


class NativePieces:
    """Implements `weightpager.answers.model.TextPieces`."""

    def __init__(self, read: _Read) -> None:
        self._read = read
        self._length = read.ids.shape[1]

    @property
    def over(self) -> bool:
        return bool(self._read.done == self._length)

    def read_piece(self) -> Floats:
        piece: Floats = self._read.read(self._read.done + self._read.piece(self._length))[0]
        return piece

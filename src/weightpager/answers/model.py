"""What answers need of a task's model, whatever backend runs it. Arrays are numpy's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.answers.decoding import GrowingTexts, Reading, TextPieces
from weightpager.answers.work import Sampling
from weightpager.bundle.format.manifest import Pictures
from weightpager.readers.picture import Picture

PIECE = 128
"""Tokens of a text that are read at once at most; others may have a turn before the next ones. Beginnings of texts are
kept in such pieces: of 256 tokens reading takes 4 % less time, and more is read again where only whole ones serve."""

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
    return texts * longest > 2 * PIECE and longest > 2 * shortest


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
        return min(tokens, PIECE - read % PIECE, length - read)  # ends where other texts' pieces do


Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Inputs = Mapping[str, npt.NDArray[Any]]
"""``input_ids`` and ``attention_mask``, int64 [texts, tokens], or ``pixel_values``, float32 [images, ...].

A model that reads pictures among its words takes all three, the pictures in the order of their places in the texts."""


@dataclass(frozen=True)
class CacheSize:
    """What keys and values of earlier tokens take.

    Attributes:
        token_bytes: bytes of a token of one text, in all layers; 0 of a model that keeps none.
        block: tokens that a text takes room for at a time.
    """

    token_bytes: int = 0
    block: int = 1

    def tokens(self, texts: int, tokens: int) -> int:
        """Tokens that a batch takes room for, of texts that have ``tokens`` each, padding included."""
        return texts * self.block * -(-tokens // self.block)

    def bytes(self, texts: int, tokens: int) -> int:
        """Bytes that the cache of such a batch takes."""
        return self.tokens(texts, tokens) * self.token_bytes

    def within(self, size: int) -> int | None:
        """Tokens that so many bytes hold, in whole blocks; None for any number."""
        return size // (self.token_bytes * self.block) * self.block if self.token_bytes else None


@dataclass(frozen=True)
class ModelLimits:
    """What a bundle's model can read, and what that takes.

    Attributes:
        vocab_size: number of token ids; 0 of a model that reads images.
        context: number of tokens that it can read, prompt and continuation together, as far as it says.
        uniform_length: length up to which a text doesn't change how others of its batch are read; None for any.
        in_pieces: whether a text may be read a piece after the other, with the same result as at once but for rounding.
        activations: the bytes that a forward takes.
        pictures: how pictures stand in its texts; None if it reads none there.
    """

    vocab_size: int
    context: int
    uniform_length: int | None
    in_pieces: bool
    activations: Activations
    pictures: Pictures | None = None

    def room(self, longest: float) -> int:
        """Tokens of a prompt and its continuation at most, where a tokenizer says that a text has ``longest``."""
        return int(min(self.context, longest))

    def uniform_room(self, longest: float) -> int:
        """Tokens of a text and its continuation up to which others of its batch are read as if alone."""
        room = self.room(longest)
        return room if self.uniform_length is None else min(room, self.uniform_length)


@dataclass(frozen=True)
class PlacedFeatures:
    """Pictures' features, and where they stand in a batch of texts.

    Attributes:
        rows: [features, width], of all pictures one after the other.
        index: int64 [texts, tokens], the row that stands in a token's place; −1 where a word does. Tokens behind the
            last one, which are generated, are words.
    """

    rows: Floats
    index: Integers

    @classmethod
    def of(cls, ids: Integers, mask: Integers, token_id: int, features: Sequence[Floats]) -> PlacedFeatures:
        """Features of all pictures, in the order of the texts and of the pictures in each.

        Raises:
            ValueError: the texts have more or fewer placeholders than there are features.
        """
        rows = np.concatenate(features)
        places = (ids == token_id) & (mask != 0)
        if int(places.sum()) != len(rows):
            raise ValueError(f"expected {len(rows)} placeholders for the features of pictures, found {places.sum()}")
        index = np.full(ids.shape, -1, np.int64)
        index[places] = np.arange(len(rows))
        return cls(rows, index)

    def between(self, start: int, stop: int) -> PlacedFeatures | None:
        """What stands in the place of so many of the texts' tokens; None if all of them are words."""
        index = self.index[:, start:stop]
        if not (index >= 0).any():
            return None
        behind = np.full((len(index), stop - start - index.shape[1]), -1, np.int64)
        return PlacedFeatures(self.rows, np.concatenate([index, behind], 1))

    def of_texts(self, texts: Sequence[int]) -> PlacedFeatures:
        """What stands in these texts, and no other rows."""
        index = self.index[list(texts)]
        kept = np.unique(index[index >= 0])
        return PlacedFeatures(self.rows[kept], np.where(index >= 0, np.searchsorted(kept, index), -1))


class TaskModel(ABC):
    """A task's model; its task is active whenever it computes.

    Attributes:
        limits: what it can read, and what that takes.
        cache: what keys and values of earlier tokens take, of a task that writes.
        eos_token_ids: tokens that end a text, by the model.
    """

    limits: ModelLimits
    cache: CacheSize
    eos_token_ids: frozenset[int]

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self.limits.vocab_size

    @property
    def context(self) -> int:
        """Tokens that it can read, prompt and continuation together, as far as it says."""
        return self.limits.context

    @abstractmethod
    def logits(self, inputs: Inputs) -> Floats:
        """The outputs of the task's head: [items, classes], or [texts, tokens, classes]."""

    @abstractmethod
    def hidden(self, inputs: Inputs) -> Floats:
        """The last hidden states below the task's head, [texts, tokens, width]."""

    def features(self, pixels: Floats) -> Floats:
        """Pictures' features, [pictures, tokens, width], of pixels [pictures, channels, height, width].

        Whoever keeps features asks for one picture at a time: bits depend on how many are computed together.
        """
        raise TypeError(f"expected a model that reads pictures, found one of other inputs, got {list(pixels.shape)}")

    @abstractmethod
    def reading(self, texts: int, most: int | None, placed: PlacedFeatures | None = None) -> Reading:
        """A batch of so many texts of which nothing has been read, for at most so many tokens of each; None for any.

        ``placed`` is what stands in the texts' first tokens in the place of words.
        """

    def grow(
        self,
        ids: Integers,
        mask: Integers,
        sampling: Sampling,
        pad: int,
        most: int | None = None,
        placed: PlacedFeatures | None = None,
    ) -> GrowingTexts:
        """Prompts to go on with; nothing has been read.

        Args:
            ids: [texts, tokens], shorter ones padded on the left.
            mask: the same shape, 0 for padding.
            sampling: how tokens are drawn.
            pad: what fills texts that are over.
            most: tokens that each is continued by in all steps together, which bounds the cache; None for any number.
            placed: the features that stand in the prompts.
        """
        texts, tokens = ids.shape
        reading = self.reading(texts, None if most is None else tokens + most, placed)
        return GrowingTexts(reading, self.limits, ids, mask, sampling, pad)

    def pieces(self, ids: Integers) -> TextPieces:
        """A text, [tokens], to read in pieces; only of a model that reads `in_pieces`."""
        return TextPieces(self.reading(1, len(ids)), self.limits, ids)


FindFeatures = Callable[[TaskModel, Picture], Floats]
"""Gives a picture's features, [tokens, width], to a task whose model is active: computed now, or kept."""


def computed(model: TaskModel, picture: Picture) -> Floats:
    """A picture's features, computed alone, so that no other picture changes their bits. Implements `FindFeatures`."""
    found: Floats = model.features(picture.pixels[None])[0]
    return found

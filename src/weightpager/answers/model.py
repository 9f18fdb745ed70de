"""What answers need of a task's model, whatever backend runs it. Arrays are numpy's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.answers.decoding import GrowingTexts, Reading, TextPieces
from weightpager.answers.work import Sampling
from weightpager.bundle.format.manifest import PackedTiles, Pictures
from weightpager.readers.packed_tiles import Size, packed, tile_count
from weightpager.readers.patch_processor import Grid
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

A model that reads pictures among its words takes all three, the pictures in the order of their places in the texts. Of
runs of patches ``pixel_values`` is float32 [patches, numbers of a patch], and ``image_grid_thw``, int64 [pictures, 3],
says how many frames, rows and columns of patches each picture has. Of tiles it is float32 [texts, tiles, ...]; tiles of
zeros fill it up, or [tiles, ...]. Where features of tiles are put together it is [pictures, tiles, ...], and
``image_sizes``, int64 [pictures, 2], has heights and widths."""

OF_GRIDS = ("image_grid_thw", "mm_token_type_ids", "pixel_attention_mask", "image_sizes")
"""Those by which transformers' own modules number the places of runs of patches, and tell padding of tiles."""

Grids = Sequence[Grid]
"""Rows and columns of places, of each picture that is a run of patches."""


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
        positions: `grid_positions` of the texts; None where places are numbered as words are.
    """

    rows: Floats
    index: Integers
    positions: Integers | None = None

    @classmethod
    def of(
        cls, ids: Integers, mask: Integers, token_id: int, features: Sequence[Floats], grids: Grids | None = None
    ) -> PlacedFeatures:
        """Features of all pictures, in the order of the texts and of the pictures in each; ``grids`` are of runs.

        Raises:
            ValueError: the texts have more or fewer placeholders than there are features.
        """
        rows = np.concatenate(features)
        places = (ids == token_id) & (mask != 0)
        if int(places.sum()) != len(rows):
            raise ValueError(f"expected {len(rows)} placeholders for the features of pictures, found {places.sum()}")
        index = np.full(ids.shape, -1, np.int64)
        index[places] = np.arange(len(rows))
        return cls(rows, index, None if grids is None else grid_positions(places, mask, grids))

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
        positions = None if self.positions is None else self.positions[:, list(texts)]
        return PlacedFeatures(self.rows[kept], np.where(index >= 0, np.searchsorted(kept, index), -1), positions)


def grid_positions(places: npt.NDArray[np.bool_], mask: Integers, grids: Grids) -> Integers:
    """Positions in time, rows and columns, int64 [3, texts, tokens], as Qwen2-VL numbers them.

    A word's three are the same. Inside of a picture rows and columns are counted from the number of its first place,
    and the next word has one more than the greatest of all before it. Padding has 0.

    Args:
        places: [texts, tokens], where places of pictures are.
        mask: of the same shape, 0 for padding.
        grids: of the pictures, in the order of their places.
    """
    found, left = np.zeros((3, *mask.shape), np.int64), iter(grids)
    for text, (here, seen) in enumerate(zip(places, mask != 0, strict=True)):
        tokens = np.flatnonzero(seen)
        at = following = 0
        while at < len(tokens):
            if here[tokens[at]]:
                grid = next(left)
                rows, columns = np.indices(grid, np.int64).reshape(2, -1)
                part, size = np.stack([np.zeros_like(rows), rows, columns]), max(grid)
            else:
                next_places = np.flatnonzero(here[tokens[at:]])
                size = int(next_places[0]) if len(next_places) else len(tokens) - at
                part = np.broadcast_to(np.arange(size), (3, size))
            stop = at + part.shape[1]
            found[:, text, tokens[at:stop]] = following + part
            at, following = stop, following + size
    return found


def positions(mask: Integers, prompts: Integers | None = None) -> Integers:
    """Each token's number among its text's, int64 [texts, tokens]; padding on the left has none and gets 0.

    Of texts that begin with ``prompts``, which have three each, [3, texts, tokens]; behind these each has one more.
    """
    if prompts is None:
        numbers: Integers = np.maximum(np.cumsum(mask, 1) - 1, 0)
        return numbers
    behind = np.arange(1, mask.shape[1] - prompts.shape[2] + 1) + prompts.max((0, 2))[:, None]
    return np.concatenate([prompts, np.broadcast_to(behind, (3, *behind.shape))], 2)[:, :, : mask.shape[1]]


def picture_parts(inputs: Inputs, form: Pictures) -> tuple[Floats, Grids | None]:
    """What `TaskModel.features` takes of a batch's pixels.

    Raises:
        ValueError: there are runs of patches, and their grids are missing or of other pictures; or tiles, and some are
            padded inside, or sizes of pictures are missing.
    """
    pixels = inputs["pixel_values"]
    if form.tiles is not None and np.ndim(pixels) == 5:
        tiles = pixels.reshape(-1, *pixels.shape[2:])
        real, mask = tiles.any((1, 2, 3)), inputs.get("pixel_attention_mask")
        if mask is not None and not np.asarray(mask).reshape(len(tiles), -1)[real].all():
            raise ValueError("input pixel_attention_mask: expected whole tiles, found some that are padded inside")
        return tiles[real], None
    if form.packed is not None:
        return _tiles_of_sizes(inputs, form.packed), None
    if form.runs is None:
        return pixels, None
    merge, sides = form.runs.merge, np.asarray(inputs.get("image_grid_thw", ()))
    right = sides.ndim == 2 and sides.shape[1] == 3 and (sides[:, 0] == 1).all() and not (sides[:, 1:] % merge).any()
    if not right or np.ndim(pixels) != 2 or sides.min(initial=1) < 1 or sides.prod(1).sum() != len(pixels):
        expected = "expected frames (1), rows and columns of all pictures' patches, int64 [pictures, 3]"
        raise ValueError(f"input image_grid_thw: {expected}, found {sides.tolist()} for {np.shape(pixels)}")
    grids = [(int(rows) // merge, int(columns) // merge) for _, rows, columns in sides]
    return pixels.reshape(-1, merge**2, pixels.shape[-1]), grids


def picture_features(
    inputs: Inputs, form: Pictures, features: Callable[[Floats, Grids | None], Floats | list[Floats]]
) -> tuple[list[Floats], Grids | None]:
    """The features of a batch's pictures, or of their tiles, in their order, and the grids of runs of patches."""
    pixels, grids = picture_parts(inputs, form)
    found = features(pixels, grids)
    if form.packed is None:
        return list(found), grids
    sizes, tiles = _sizes(inputs), form.packed
    ends = np.cumsum([tile_count(size, tiles) for size in sizes])
    each = np.split(np.asarray(found), ends[:-1])
    return [packed(part, size, tiles) for part, size in zip(each, sizes, strict=True)], None


def _sizes(inputs: Inputs) -> list[Size]:
    return [(int(height), int(width)) for height, width in np.asarray(inputs.get("image_sizes", ())).tolist()]


def _tiles_of_sizes(inputs: Inputs, tiles: PackedTiles) -> Floats:
    """The tiles of all pictures, without padding, [tiles, channels, height, width]."""
    pixels, sides = inputs["pixel_values"], np.asarray(inputs.get("image_sizes", ()))
    expected = "expected heights and widths of all pictures, int64 [pictures, 2]"
    if np.ndim(pixels) != 5 or sides.shape != (len(pixels), 2) or sides.min(initial=1) < 1:
        raise ValueError(f"input image_sizes: {expected}, found {sides.tolist()} for {np.shape(pixels)}")
    counts = [tile_count(size, tiles) for size in _sizes(inputs)]
    if max(counts, default=0) > pixels.shape[1]:
        raise ValueError(f"input image_sizes: {expected}, found {sides.tolist()}, of {max(counts)} tiles")
    return np.concatenate([each[:count] for each, count in zip(pixels, counts, strict=True)])


def parts_of(pixels: Floats, grids: Grids | None) -> Iterator[tuple[Floats, Grid | None]]:
    """The pixels of each picture alone, and its rows and columns if it is a run of patches."""
    if grids is None:
        yield from ((pixels[at : at + 1], None) for at in range(len(pixels)))
        return
    at = 0
    for grid in grids:
        yield pixels[at : at + math.prod(grid)], grid
        at += math.prod(grid)


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

    def features(self, pixels: Floats, grids: Grids | None = None) -> Floats | list[Floats]:  # noqa: ARG002
        """Pictures' or tiles' features, [pictures, tokens, width], of pixels [pictures, channels, height, width].

        Of runs of patches the pixels are [places of all pictures, patches of a place, numbers of a patch], ``grids``
        are stated, and there is an array [tokens, width] for each picture. Each picture is computed alone, so that its
        bits don't depend on the others.
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
    pixels, grids = picture.pixels, None if picture.grid is None else [picture.grid]
    found = model.features(pixels if picture.is_scaled else pixels[None], grids)
    if picture.size is not None:
        assert model.limits.pictures is not None
        assert model.limits.pictures.packed is not None
        return packed(np.asarray(found), picture.size, model.limits.pictures.packed)
    return np.concatenate(list(found))

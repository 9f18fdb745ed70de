"""What earlier work of a task has left to later: pictures' features, and keys and values of texts' beginnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from weightpager.answers.decoding import Piece
from weightpager.answers.model import FindFeatures, Integers, computed
from weightpager.bundle.format.manifest import Pictures
from weightpager.readers.picture import Picture
from weightpager.runtime.memory.prefix_cache import PrefixCache


@dataclass(frozen=True)
class Prefixes:
    """Beginnings of one task's texts.

    Attributes:
        cache: of all tasks.
        root: of the task's chains.
    """

    cache: PrefixCache
    root: bytes

    def of(self, ids: Integers, pictures: Sequence[Picture], form: Pictures | None) -> TextPieces:
        """Those of one text.

        Args:
            ids: its prompt's tokens, int64 [tokens].
            pictures: that stand in it, in their order.
            form: how they stand there; None where none do.
        """
        firsts = {}
        if form is not None:
            places = np.flatnonzero(ids == form.token_id)
            counts = [picture.tokens for picture in pictures]
            begins = np.cumsum([0, *counts])[:-1]
            firsts = {int(places[at]): picture.key for at, picture in zip(begins, pictures, strict=True)}
        return TextPieces(self.cache, self.root, _Words(ids, firsts))


@dataclass(frozen=True)
class _Words:
    """Tokens, int64 [tokens], and pictures among them: their keys by the place of their first token."""

    ids: Integers
    pictures: Mapping[int, bytes]

    def part(self, start: int, stop: int) -> _Words:
        here = {place - start: key for place, key in self.pictures.items() if start <= place < stop}
        return _Words(self.ids[start:stop].copy(), here)

    def common(self, other: _Words) -> int:
        """How many tokens both begin with."""
        most = min(len(self.ids), len(other.ids))
        differing = np.flatnonzero(self.ids[:most] != other.ids[:most])
        if len(differing):
            most = int(differing[0])
        places = self.pictures.keys() | other.pictures.keys()
        return min([most, *(place for place in places if self.pictures.get(place) != other.pictures.get(place))])

    def digest(self) -> bytes:
        found = blake3(self.ids.tobytes())
        for place, key in sorted(self.pictures.items()):
            found.update(place.to_bytes(8, "little") + key)
        return found.digest()


@dataclass(frozen=True)
class _Kept:
    """A piece and its words; others may stand behind it if it is whole."""

    piece: Piece
    words: _Words
    whole: bool


class TextPieces:
    """What is kept of one text, a piece behind the other. Implements `weightpager.answers.decoding.KeptPieces`."""

    def __init__(self, cache: PrefixCache, root: bytes, words: _Words) -> None:
        self._cache, self._words, self._prompt = cache, words, len(words.ids)
        self._chain, self._known, self._ended = [root], 0, False
        self.end = 0

    def find(self, stop: int, *, whole: bool) -> tuple[Piece, int] | None:
        if self._ended:
            return None
        wanted = self._words.part(self.end, stop)

        def match(kept: _Kept) -> int:
            common = kept.words.common(wanted)
            return 0 if whole and not common == len(kept.words.ids) == len(wanted.ids) else common

        found = self._cache.find(self._chain, match)
        if found is None:
            return None
        kept, self._known = found.piece, self.end + found.tokens
        if kept.whole and found.tokens == len(kept.words.ids):
            self._chain.append(found.key)
            self.end = self._known
        else:
            self._ended = True  # the next piece of this text begins where this one does
        return kept.piece, found.tokens

    def keep(self, piece: Piece, *, whole: bool) -> None:
        stop = self.end + piece.tokens
        kept = _Kept(piece, self._words.part(self.end, stop), whole)
        key = blake3(self._chain[-1] + kept.words.digest()).digest()
        fresh = max(0, min(stop, self._prompt) - max(self.end, self._known))

        def covers(other: _Kept) -> bool:
            return kept.words.common(other.words) == len(other.words.ids)

        self._cache.keep(self._chain, key, kept, piece.bytes, fresh=fresh, covers=covers)
        self._known = max(self._known, stop)
        if whole:
            self._chain.append(key)
            self.end = stop

    def go_on(self, ids: Integers) -> None:
        """The text has grown: its tokens, int64 [tokens], begin with those of before."""
        self._words = _Words(ids, self._words.pictures)


@dataclass(frozen=True)
class Kept:
    """What a batch of one task may take over.

    Attributes:
        features: gives those of pictures that stand in prompts.
        prefixes: beginnings of texts; None where none are kept.
    """

    features: FindFeatures = computed
    prefixes: Prefixes | None = None


NOTHING_KEPT = Kept()

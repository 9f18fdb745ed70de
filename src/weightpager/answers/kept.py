"""What earlier work of a task has left to later: pictures' features, and keys and values of prompts' beginnings."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Beginnings of one task's prompts.

    Attributes:
        cache: of all tasks.
        root: of the task's chains.
    """

    cache: PrefixCache
    root: bytes

    def of(self, ids: Integers, pictures: Sequence[Picture], form: Pictures | None) -> PromptPieces:
        """Those of one prompt.

        Args:
            ids: its tokens, int64 [tokens].
            pictures: that stand in it, in their order.
            form: how they stand there; None where none do.
        """
        firsts = []
        if form is not None:
            firsts = np.flatnonzero(ids == form.token_id)[:: form.tokens].tolist()
        keys = [picture.key for picture in pictures]
        return PromptPieces(self.cache, self.root, ids, dict(zip(firsts, keys, strict=True)))


class PromptPieces:
    """What is kept of one prompt, a piece behind the other. Implements `weightpager.answers.decoding.KeptPieces`.

    Where a piece ends depends on no token, and on the prompt's length only in the last piece, which isn't kept. So what
    is kept is to the bit what would be computed.
    """

    def __init__(self, cache: PrefixCache, root: bytes, ids: Integers, pictures: dict[int, bytes]) -> None:
        """``pictures`` are their keys by the place of their first token."""
        self._cache, self._ids, self._pictures = cache, ids, pictures
        self._chain, self._ends = [root], [0]

    def find(self, stop: int) -> Piece | None:
        """The piece that follows the one before and ends at ``stop``; None where it isn't kept."""
        return self._cache.find(self._to(stop))

    def keep(self, stop: int, piece: Piece) -> None:
        """Keep the piece that ends there."""
        self._cache.keep(self._to(stop), piece, piece.tokens, piece.bytes)

    def _to(self, stop: int) -> Sequence[bytes]:
        """The chain to a piece, whose keys name all that stands before its end."""
        if self._ends[-1] != stop:
            start = self._ends[-1]
            key = blake3(self._chain[-1])
            key.update(self._ids[start:stop].tobytes())
            for place, picture in self._pictures.items():
                if start <= place < stop:
                    key.update(picture)
            self._chain.append(key.digest())
            self._ends.append(stop)
        return self._chain[1:]


@dataclass(frozen=True)
class Kept:
    """What a batch of one task may take over.

    Attributes:
        features: gives those of pictures that stand in prompts.
        prefixes: beginnings of prompts; None where none are kept.
    """

    features: FindFeatures = computed
    prefixes: Prefixes | None = None


NOTHING_KEPT = Kept()

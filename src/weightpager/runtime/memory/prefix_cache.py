"""`PrefixCache`: keys and values of prompts' beginnings, kept for prompts that begin in the same way."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from weightpager.figures import counter, gauge
from weightpager.interrupts import acquired, uninterrupted

Chain = Sequence[bytes]
"""A beginning, as the keys of its pieces: each key says of which piece behind which others it is."""


@dataclass(frozen=True)
class PrefixReport:
    """Beginnings of prompts that are kept.

    Attributes:
        kept: pieces whose keys and values are in memory.
        bytes: bytes that these take.
        hits: tokens of prompts that weren't read again.
        misses: tokens that were read, in whole pieces.
        evicted: pieces that went for others, or for a smaller budget.
    """

    kept: int = field(metadata=gauge("prefixes", "Pieces of prompts whose keys and values are in memory."))
    bytes: int = field(metadata=gauge("prefix_bytes", "Memory that they take."))
    hits: int = field(metadata=counter("prefix_hit_tokens", "Tokens of prompts that weren't read again."))
    misses: int = field(metadata=counter("prefix_miss_tokens", "Tokens of prompts that were read in whole pieces."))
    evicted: int = field(metadata=counter("prefix_evictions", "Pieces of prompts that went for others."))


@dataclass(frozen=True)
class _Kept:
    piece: Any
    tokens: int
    bytes: int


class PrefixCache:
    """An LRU cache of pieces in so many bytes. A piece never outlives those that stand before it in its chain.

    Safe to use from several threads. Nobody changes a piece.
    """

    def __init__(self, room: int) -> None:
        """Nothing is kept; ``room`` is the bytes that pieces may take."""
        self._room = room
        self._lock = threading.Lock()
        self._here: OrderedDict[bytes, _Kept] = OrderedDict()  # the least recently used first
        self._bytes = self._hits = self._misses = self._evicted = 0
        self._generation = 0

    @property
    def room(self) -> int:
        """Bytes that pieces may take."""
        return self._room

    @property
    def report(self) -> PrefixReport:
        with uninterrupted, acquired(self._lock):
            return PrefixReport(len(self._here), self._bytes, self._hits, self._misses, self._evicted)

    def root(self, owner: bytes) -> bytes:
        """What the first key of an owner's chains follows from. Those from before a `clear` are never found again."""
        return blake3(owner + self._generation.to_bytes(8, "little")).digest()

    @uninterrupted
    def find(self, chain: Chain) -> Any | None:
        """The last piece of a chain; None where it isn't kept."""
        with acquired(self._lock):
            found = self._here.get(chain[-1])
            if found is None:
                return None
            self._use(chain)
            self._hits += found.tokens
            return found.piece

    @uninterrupted
    def keep(self, chain: Chain, piece: Any, tokens: int, size: int) -> None:
        """Keep the last piece of a chain, unless there is no room for it beside those before it.

        Args:
            chain: of the beginning that ends with the piece.
            piece: nobody changes it any more.
            tokens: in the piece.
            size: bytes that it takes.
        """
        with acquired(self._lock):
            self._misses += tokens
            before = [self._here.get(key) for key in chain[:-1]]
            if chain[-1] in self._here or None in before:
                return
            if size + sum(each.bytes for each in before if each is not None) > self._room:
                return
            self._use(chain[:-1])  # so that none of these goes
            self._shrink(self._room - size)
            self._here[chain[-1]] = _Kept(piece, tokens, size)
            self._bytes += size
            self._use(chain)

    @uninterrupted
    def resize(self, room: int) -> None:
        """Have another size; what has no room any more goes, the least recently used first."""
        with acquired(self._lock):
            self._room = room
            self._shrink(room)

    @uninterrupted
    def clear(self) -> None:
        """Forget everything, also what is being read: it may be wrong."""
        with acquired(self._lock):
            self._generation += 1
            self._here.clear()
            self._bytes = 0

    def _use(self, chain: Chain) -> None:
        """Note a use. Pieces at the beginning count as used last: they go after those that stand behind them."""
        for key in reversed(chain):
            self._here.move_to_end(key)

    def _shrink(self, size: int) -> None:
        while self._bytes > size:
            _, gone = self._here.popitem(last=False)
            self._bytes -= gone.bytes
            self._evicted += 1

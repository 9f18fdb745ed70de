"""`PrefixCache`: keys and values of prompts' beginnings, kept for prompts that begin in the same way."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from weightpager.figures import counter, gauge
from weightpager.interrupts import acquired, uninterrupted

Chain = Sequence[bytes]
"""A beginning: a root, and behind it the keys of its pieces. Each key says of which piece behind which others it is."""

Match = Callable[[Any], int]
"""How many tokens a piece has in common, from its first on, with what is wanted."""


@dataclass(frozen=True)
class PrefixReport:
    """Beginnings of prompts that are kept.

    Attributes:
        kept: pieces whose keys and values are in memory.
        bytes: bytes that these take.
        hits: tokens of prompts that weren't read again.
        misses: tokens of prompts that were read, and kept.
        evicted: pieces that went for others, or for a smaller budget.
    """

    kept: int = field(metadata=gauge("prefixes", "Pieces of prompts whose keys and values are in memory."))
    bytes: int = field(metadata=gauge("prefix_bytes", "Memory that they take."))
    hits: int = field(metadata=counter("prefix_hit_tokens", "Tokens of prompts that weren't read again."))
    misses: int = field(metadata=counter("prefix_miss_tokens", "Tokens of prompts that were read, and kept."))
    evicted: int = field(metadata=counter("prefix_evictions", "Pieces of prompts that went for others."))


@dataclass(frozen=True)
class Found:
    """A piece that was found, its key, and how many of its tokens are wanted."""

    key: bytes
    piece: Any
    tokens: int


@dataclass(frozen=True)
class _Kept:
    piece: Any
    size: int
    parent: bytes


class PrefixCache:
    """A tree of pieces in so many bytes. The least recently used go first, and leaves before what bears them.

    Safe to use from several threads. Nobody changes a piece.
    """

    def __init__(self, room: int) -> None:
        """Nothing is kept; ``room`` is the bytes that pieces may take."""
        self._room = room
        self._lock = threading.Lock()
        self._here: OrderedDict[bytes, _Kept] = OrderedDict()  # the least recently used first
        self._behind: dict[bytes, set[bytes]] = {}
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
        """The root of an owner's chains. Those from before a `clear` are never found again."""
        return blake3(owner + self._generation.to_bytes(8, "little")).digest()

    @uninterrupted
    def find(self, chain: Chain, match: Match) -> Found | None:
        """The piece behind a chain that has most in common with what is wanted; None where none has anything."""
        with acquired(self._lock):
            behind = ((match(self._here[key].piece), key) for key in self._behind.get(chain[-1], ()))
            tokens, key = max(behind, default=(0, b""))
            if tokens == 0:
                return None
            self._use([*chain, key])
            self._hits += tokens
            return Found(key, self._here[key].piece, tokens)

    @uninterrupted
    def keep(
        self, chain: Chain, key: bytes, piece: Any, size: int, *, fresh: int, covers: Callable[[Any], bool]
    ) -> None:
        """Keep a piece behind a chain, unless there is no room for it beside those of the chain.

        Args:
            chain: what stands before it.
            key: of the piece behind the chain.
            piece: nobody changes it any more.
            size: bytes that it takes.
            fresh: tokens of a prompt that were read for it.
            covers: tells of a piece whether the new one continues it, so that it needn't stay.
        """
        with acquired(self._lock):
            self._misses += fresh
            before = [self._here.get(each) for each in chain[1:]]
            if key in self._here or None in before:
                return
            if size + sum(each.size for each in before if each is not None) > self._room:
                return
            for other in [*self._behind.get(chain[-1], ())]:
                if other not in self._behind and covers(self._here[other].piece):
                    self._forget(other)
            self._use(chain)  # so that none of these goes
            self._shrink(self._room - size)
            self._here[key] = _Kept(piece, size, chain[-1])
            self._behind.setdefault(chain[-1], set()).add(key)
            self._bytes += size
            self._use([*chain, key])

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
            self._behind.clear()
            self._bytes = 0

    def _use(self, chain: Chain) -> None:
        """Note a use. Pieces at the beginning count as used last: they go after those that stand behind them."""
        for key in reversed(chain[1:]):
            self._here.move_to_end(key)

    def _shrink(self, size: int) -> None:
        while self._bytes > size:
            self._forget(next(iter(self._here)))
            self._evicted += 1

    def _forget(self, key: bytes) -> None:
        gone = self._here.pop(key)
        self._bytes -= gone.size
        siblings = self._behind[gone.parent]
        siblings.discard(key)
        if not siblings:
            del self._behind[gone.parent]

"""Pages of several stores under one numbering that only grows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.store.base import FileStore, PageStore, Sources


@dataclass(frozen=True)
class _Part:
    """``pages[i]`` of a store is page number ``first + i`` here; ``lasts[i]`` ends the consecutive ones from i on."""

    first: int
    store: PageStore
    files: FileStore | None
    pages: npt.NDArray[np.int64]
    lasts: npt.NDArray[np.int64]

    def sources(self, pages: npt.NDArray[np.int64]) -> Sources | None:
        """Implements `FileStore.sources`; ``pages`` are numbers here."""
        return None if self.files is None else self.files.sources(self.pages[pages - self.first])


class JoinedStore:
    """Stores one behind the other. Pages are added while others are read; what has been added keeps its number."""

    def __init__(self) -> None:
        self._parts: tuple[_Part, ...] = ()  # replaced whole, so that readers need no lock
        self._firsts: tuple[int, ...] = ()
        self._end = 0

    def __len__(self) -> int:
        return self._end

    def add(self, store: PageStore, pages: npt.NDArray[np.int64]) -> None:
        """Number some pages of a store, ascending, from `len` on; the store is closed with this one."""
        gaps = np.flatnonzero(np.diff(pages) != 1)
        ends = np.append(gaps + 1, len(pages))
        lasts = ends[np.searchsorted(ends, np.arange(len(pages)), side="right")] if len(pages) else ends[:0]
        files = store if isinstance(store, FileStore) else None
        part = _Part(self._end, store, files, pages, lasts)
        self._parts = (*self._parts, part)
        self._firsts = (*self._firsts, self._end)
        self._end += len(pages)

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        part = self._part(first)
        part.store.read(int(part.pages[first - part.first]), into)

    def span(self, first: int) -> int:
        part = self._part(first)
        place = first - part.first
        return min(int(part.lasts[place]) - place, part.store.span(int(part.pages[place])))

    def sources(self, pages: npt.NDArray[np.int64]) -> Sources | None:
        """Implements `FileStore.sources`; None if one of the stores can't say."""
        if len(pages) and (part := self._part(int(pages[0]))) is self._part(int(pages[-1])):
            return part.sources(pages)
        firsts, parts = self._firsts, self._parts
        cuts = [*np.searchsorted(pages, firsts).tolist(), len(pages)]
        pieces: list[Sources] = []
        for part, begin, end in zip(parts, cuts, cuts[1:], strict=False):
            if begin == end:
                continue
            piece = part.sources(pages[begin:end])
            if piece is None:
                return None
            pieces.append(piece)
        if len(pieces) == 1:
            return pieces[0]
        none = Sources(np.zeros(0, np.int32), np.zeros(0, np.int64))
        return Sources(
            np.concatenate([piece.descriptors for piece in (none, *pieces)]),
            np.concatenate([piece.offsets for piece in (none, *pieces)]),
        )

    def close(self) -> None:
        with ExitStack() as closing:
            for part in self._parts:
                closing.callback(part.store.close)

    def _part(self, page: int) -> _Part:
        # `add` sets them in the other order, so that there is a part for every entry that is seen here. Parts without
        # pages begin where the next one does, and are passed over.
        firsts = self._firsts
        return self._parts[bisect_right(firsts, page) - 1]

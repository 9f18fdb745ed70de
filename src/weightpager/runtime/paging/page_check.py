"""Compares what is in the arena with what the bundle holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blake3 import blake3

from weightpager.machine.direct_file import aligned_memory
from weightpager.runtime.paging.state import PagingState
from weightpager.runtime.planning.plans import Pages
from weightpager.runtime.planning.slots import ABSENT

_AT_ONCE = 64
"""Pages that are hashed before others may have the lock."""


class PageCheck:
    """Compares resident pages with their ids, and repairs them, while others use the arena."""

    def __init__(self, state: PagingState) -> None:
        self._state = state

    def damaged(self) -> list[int]:
        """Resident pages whose bytes no longer match their id."""
        with self._state.lock:
            pages = self._state.blocks.resident()
        pieces = [pages[start : start + _AT_ONCE] for start in range(0, len(pages), _AT_ONCE)]
        return [page for piece in pieces for page in self._damaged(piece)]

    def repair(self) -> list[int]:
        """Reload damaged pages in place. Returns their numbers.

        Raises:
            StoreError, PageCorruptError: storage doesn't have a page as it should be; it stays as it is.
        """
        state, damaged = self._state, self.damaged()
        # An error's traceback may keep a part of it.
        content = memoryview(aligned_memory(state.memory.arena.page_bytes))
        for page in damaged:
            with self._reading(page):
                state.store.read(page, [content])
                with state.lock:
                    slot = int(state.blocks.page_table[page])
                    if slot != ABSENT:
                        state.memory.arena.replace(slot, content)
        return damaged

    @contextmanager
    def _reading(self, page: int) -> Iterator[None]:
        """Keep a page's number from naming another page, which what is read now must never replace."""
        with self._state.lock:
            self._state.reading.append(page)
        try:
            yield
        finally:
            with self._state.lock:
                self._state.reading.remove(page)

    def _damaged(self, pages: Pages) -> list[int]:
        state = self._state
        with state.lock:
            return [
                int(page)
                for page in pages
                if (slot := int(state.blocks.page_table[page])) != ABSENT
                and blake3(state.memory.arena.content(slot)).digest() != state.index.ids[page].tobytes()
            ]

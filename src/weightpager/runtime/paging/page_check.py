"""Compares what is in the arena with what the bundle holds."""

from __future__ import annotations

from collections.abc import Iterator

from blake3 import blake3

from weightpager.machine.storage import aligned_memory
from weightpager.runtime.bracket import bracket
from weightpager.runtime.paging.state import PagingState
from weightpager.runtime.planning.pages import ABSENT


class PageCheck:
    """Compares resident pages with their ids, and repairs them, while others use the arena."""

    def __init__(self, state: PagingState) -> None:
        self._state = state

    def damaged(self) -> list[int]:
        with self._state.lock:
            pages = self._state.blocks.resident()
        return [page for page in pages.tolist() if self._damaged(page)]

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

    @bracket
    def _reading(self, page: int) -> Iterator[None]:
        """Keep a page's number from naming another page, which what is read now must never replace."""
        with self._state.lock:
            self._state.reading.append(page)
        try:
            yield
        finally:
            with self._state.lock:
                self._state.reading.remove(page)

    def _damaged(self, page: int) -> bool:
        """Whether a resident page differs from its id. Others have the lock while it is hashed, which takes long."""
        with self._state.lock:
            content = self._content(page)
        if content is None or self._matches(page, content):
            return False
        with self._state.lock:  # it may have gone, and others come to its slot
            content = self._content(page)
            return content is not None and not self._matches(page, content)

    def _content(self, page: int) -> memoryview | None:
        """The bytes of a page; None if it isn't resident. The lock is held."""
        slot = int(self._state.blocks.page_table[page])
        return None if slot == ABSENT else self._state.memory.arena.content(slot)

    def _matches(self, page: int, content: memoryview) -> bool:
        return bool(blake3(content).digest() == self._state.index.ids[page].tobytes())

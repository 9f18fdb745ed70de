"""Proof that what is in the arena is what the bundle holds."""

from __future__ import annotations

import mmap
import threading

from blake3 import blake3

from weightpager.bundle import PageIndex
from weightpager.runtime.memory.page_arena import PageArena
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.page_table import ABSENT
from weightpager.runtime.planning.switch_plan import Pages
from weightpager.store import PageStore

_AT_ONCE = 64
"""Pages that are hashed before others may have the lock."""


class PageCheck:
    """Compares resident pages with their ids, and mends them, while others use the arena."""

    def __init__(self, blocks: BlockManager, arena: PageArena, lock: threading.Condition) -> None:
        """Check the arena that ``blocks`` has the table of; ``lock`` guards both."""
        self._blocks = blocks
        self._arena = arena
        self._lock = lock

    def damaged(self, index: PageIndex) -> list[int]:
        """Resident pages whose bytes no longer match their id."""
        with self._lock:
            pages = self._blocks.resident()
        pieces = [pages[start : start + _AT_ONCE] for start in range(0, len(pages), _AT_ONCE)]
        return [page for piece in pieces for page in self._damaged(piece, index)]

    def repair(self, index: PageIndex, store: PageStore) -> list[int]:
        """Load damaged pages again, into the slots that they are in; which they were.

        Raises:
            StoreError, PageCorruptError: storage doesn't have a page as it should be; it stays as it is.
        """
        found = self.damaged(index)
        with mmap.mmap(-1, self._arena.page_bytes) as content:  # aligned, as direct reads want it
            for page in found:
                with memoryview(content) as whole:
                    store.read(page, [whole])
                    with self._lock:
                        slot = int(self._blocks.page_table[page])
                        if slot != ABSENT:
                            self._arena.replace(slot, whole)
        return found

    def _damaged(self, pages: Pages, index: PageIndex) -> list[int]:
        with self._lock:
            return [
                int(page)
                for page in pages
                if (slot := int(self._blocks.page_table[page])) != ABSENT
                and blake3(self._arena.content(slot)).digest() != index.ids[page].tobytes()
            ]

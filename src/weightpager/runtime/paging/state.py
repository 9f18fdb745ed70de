"""What the parts of paging share."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from weightpager.bundle import PageIndex
from weightpager.runtime.memory.budget import MemoryController
from weightpager.runtime.paging.page_waits import Waiters
from weightpager.runtime.paging.pager import Pager
from weightpager.runtime.paging.prefetched_pages import PrefetchedPages
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.plans import Pages
from weightpager.store import PageStore


class PagingState:
    """What is in the arena, what is on its way there, and who waits for it: one state under one lock.

    ``lock`` guards all that can change. It is notified whenever a read ends, and when there may be room or a task that
    could not be held may be. It is never kept while storage works. Who changes what, with the lock held:

    ==============  ==================================================================================================
    `Residency`     holders in ``blocks``, tasks that come and leave, ``changes``, ``closed``
    `Loader`        pages in ``blocks`` that are reserved, come or are cancelled; ``waiters``, ``committing``
    `SlotWaits`     pages in ``blocks`` that are evicted, and slots; ``memory``
    `PageCheck`     bytes in the arena of pages that are resident
    ==============  ==================================================================================================

    Attributes:
        lock: guards what follows.
        blocks: the page table and its policy.
        memory: the budget and the arena.
        waiters: who waits for which page.
        prefetched: pages on their way that nobody waits for.
        index: of the pages that there are; a reload of the bundle replaces it by one that has more.
        committing: whether a task has been given up and the next one has no slots yet: nobody may hold a task.
        changes: how often something happened that may have made room for a task that had none.
        closed: whether nothing may be held any more.
        pager: reads pages; safe to use without the lock, as are the rest.
        store: where pages come from; it checks them.
        patience: seconds without any page after which storage is given up.
    """

    def __init__(
        self,
        index: PageIndex,
        needs: Sequence[Pages],
        memory: MemoryController,
        pager: Pager,
        store: PageStore,
        patience: float,
        page_numbers: int,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            index: of the pages that there are.
            needs: pages of each task, ascending.
            memory: the arena.
            pager: reads into it.
            store: where pages come from; it checks them.
            patience: seconds without any page after which storage is given up.
            page_numbers: how many pages there may ever be.
        """
        self.lock = threading.Condition()
        self.blocks = BlockManager(needs, page_numbers, memory.slots, memory.arena.capacity)
        self.memory = memory
        self.waiters = Waiters()
        self.prefetched = PrefetchedPages(page_numbers)
        self.index = index
        self.committing = False
        self.changes = 0
        self.closed = False
        self.pager = pager
        self.store = store
        self.patience = patience

    def changed(self) -> None:
        """There may be room now. The lock is held."""
        self.changes += 1
        self.lock.notify_all()

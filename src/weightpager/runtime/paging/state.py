"""What the parts of paging share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from weightpager.bundle import PageIndex
from weightpager.interrupts import Condition
from weightpager.runtime.memory.memory_budget import MemoryBudget
from weightpager.runtime.paging.pager import Pager
from weightpager.runtime.paging.prefetched_pages import PrefetchedPages
from weightpager.runtime.paging.reads.page_waits import Waiters
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.plans import Pages
from weightpager.store import VerifyingStore


@dataclass(eq=False)
class PagingState:
    """What is in the arena, what is on its way there, and who waits for it: one state under one lock.

    ``lock`` guards all that can change, and is never kept while storage works. ``news`` is notified whenever a read
    ends, and when there may be room or a task that could not be held may be. Who changes what, with the lock held:

    ===============  =================================================================================================
    `Residency`      holders in ``blocks``, tasks that come and leave, ``changes``, ``closed``; has ``index`` replaced
    `Switch`         ``committing``; pages of a small switch, which come in one step
    `Loads`          other pages that are reserved, come or are cancelled; ``waiters``, ``prefetched``
    `SlotAllocator`  pages that are evicted
    `ArenaResizer`   slots; ``memory``
    `PageCheck`      bytes in the arena of pages that are resident; ``reading``
    ===============  =================================================================================================

    Attributes:
        blocks: the page table and its policy.
        prefetched: pages on their way that nobody waits for.
        memory: the budget and the arena.
        index: ids and layers of all pages; a reload of the bundle replaces it. A number names another page after that
            only if its page was not in ``busy`` and nobody needed it any more.
        pager: reads pages; like the store it is safe to use without the lock.
        store: the store that pages come from, which checks them.
        read_timeout: seconds without any page after which storage is given up.
        waiters: who waits for which page.
        reading: pages that are read though no slot is reserved for them: for a repair, or by reads that hang.
        committing: True from the moment the previous task is given up until the new task has its slots. Meanwhile
            nobody may hold a task.
        changes: how often something happened that may have made room for a task that had none.
        closed: whether nothing may be held any more.
        lock: guards these. Who changes them in the main thread is `uninterrupted`.
        news: its condition.
    """

    blocks: BlockManager
    prefetched: PrefetchedPages
    memory: MemoryBudget
    index: PageIndex
    pager: Pager
    store: VerifyingStore
    read_timeout: float
    waiters: Waiters = field(default_factory=Waiters)
    reading: list[int] = field(default_factory=list)
    committing: bool = False
    changes: int = 0
    closed: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)
    news: Condition = field(init=False)

    def __post_init__(self) -> None:
        self.news = Condition(self.lock)

    @property
    def busy(self) -> Pages:
        """Pages that are being read, ascending. Their numbers and files must stay as they are. The lock is held."""
        return np.union1d(self.blocks.reserved(), np.array(self.reading, np.int64))

    def changed(self) -> None:
        """Tell whoever waits for room that there may be some. The lock is held."""
        self.changes += 1
        self.news.notify_all()

    def end_commit(self) -> None:
        """Let others hold tasks again: the commit phase is over, or it failed just before it."""
        with self.lock:
            self.committing = False
            self.news.notify_all()

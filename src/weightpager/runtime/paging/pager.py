"""Carries out loads: the only place that reads pages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable

import numpy as np
import numpy.typing as npt

from weightpager.interrupts import Condition, uninterrupted
from weightpager.kernels.choice import NATIVE
from weightpager.runtime.memory.host_arena import PageBuffer
from weightpager.runtime.memory.page_arena import HostMemory, PageArena
from weightpager.runtime.paging.load import (
    JOIN_SECONDS,
    PageLoad,
    Priority,
    ReadEnd,
    Reads,
    own_read_error,
    storage_hangs,
)
from weightpager.runtime.paging.page_waits import wait_while_progress
from weightpager.runtime.paging.staged_loads import StagedLoads
from weightpager.runtime.paging.thread_reads import ThreadReads
from weightpager.runtime.planning.pages import Pages, PrefetchLedger
from weightpager.store import VerifyingStore, most_pages
from weightpager.store.read_plan import SMALL_SWITCH_BYTES

if NATIVE:
    from weightpager.kernels import _native
    from weightpager.runtime.paging.native_reads import NativeReads


_log = logging.getLogger(__name__)


class BlockingRead:
    """Waits for all pages of one read into memory of the caller's own.

    Args:
        pages: how many there are.
        read_timeout: seconds in which no read ends, after which storage is given up.
        reads_ended: gives the number of reads that have ended until now, whoever wanted them.
    """

    def __init__(self, pages: int, read_timeout: float, reads_ended: Callable[[], int]) -> None:
        self._changed = Condition()
        self._left = pages
        self._read_timeout = read_timeout
        self._reads_ended = reads_ended
        self._error: BaseException | None = None

    def on_read_end(self, pages: Collection[int], error: BaseException | None) -> None:
        """Some pages are in place and checked, or won't come."""
        with self._changed:
            self._left -= len(pages)
            self._error = self._error or error
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until each page has come or failed.

        Raises:
            StoreTimeoutError: no read has ended for ``read_timeout``.
            StoreError, PageCorruptError, EngineClosedError: what kept a page from coming.
        """
        with self._changed:
            while self._left:
                if not wait_while_progress(self._changed, self._read_timeout, self._reads_ended):
                    raise storage_hangs(
                        f"storage has delivered nothing for {self._read_timeout:g} s, "
                        f"{self._left} pages are outstanding"
                    )
            if self._error is not None:
                raise self._error


class LandedPages:
    """Pages on their way to memory that is this object's, where they are hashed. Then they are copied into slots.

    No slot has to be free, or belongs to a read that hangs. This memory is beside the budget, and goes back when they
    are dropped. For one thread.
    """

    def __init__(self, native: _native.LandedReads, store: VerifyingStore, into: HostMemory, pages: Pages) -> None:
        self._native = native
        self._store = store
        self._into = into
        self.pages = pages
        self.reads = native.reads
        self.bytes = len(pages) * into.page_bytes

    @classmethod
    def begin(
        cls, own_reads: _native.OwnReads | None, store: VerifyingStore, into: HostMemory | None, pages: Pages, most: int
    ) -> LandedPages | None:
        """Begin to read pages.

        None if they are many, must be read another way, or as many threads read as may at once.

        Args:
            own_reads: makes the reads; None without the native module.
            store: where the pages come from; it checks them.
            into: whose slots they are for; None if these aren't in host memory.
            pages: int64 [N], ascending.
            most: pages of one read.
        """
        if own_reads is None or into is None or len(pages) * into.page_bytes > SMALL_SWITCH_BYTES:
            return None
        sources = store.sources(pages)
        if sources is None:
            return None
        ids = store.index.ids[pages]
        native = own_reads.begin(
            most,
            len(pages),
            pages.ctypes.data,
            sources.descriptors.ctypes.data,
            sources.offsets.ctypes.data,
            ids.ctypes.data,
            into.page_bytes,
        )
        return None if native is None else cls(native, store, into, pages)

    def wait(self, read_timeout: float, reads_ended: Callable[[], int]) -> None:
        """Wait until all are there and checked.

        Args:
            read_timeout: seconds in which no read ends, of this or of the pager's, after which storage is given up.
            reads_ended: gives how often reads of the pager have ended until now.

        Raises:
            StoreError, PageCorruptError, StoreTimeoutError, EngineClosedError: what kept a page from coming.
        """
        failure, number, page, read = self._native.wait(read_timeout, reads_ended)
        if read:
            self._store.count(read)
        if failure:
            raise own_read_error(failure, number, page, read_timeout, "pages")

    def place(self, slots: npt.NDArray[np.integer]) -> None:
        """Copy them into free slots that are theirs, one each in the order of the pages, once all are there."""
        wide = slots.astype(np.int64)
        self._native.place(len(wide), wide.ctypes.data, self._into.address(wide))

    def drop(self) -> None:
        """Let another thread read in their memory. What hangs keeps it until it ends.

        Called once they are in their slots, or won't be. Nothing else may be called after that.
        """
        self._native.drop()


class Pager:
    """Brings pages into slots, those of higher priority first, in the order of their submission.

    All are read into host memory: an arena's slots, stages on the way to a device, or memory of the caller's own. Pages
    of files come without Python between their reads; those of other stores, and all where there is no native module,
    by threads.

    Attributes:
        own_reads: the reads of threads that read themselves; None without the native module.

    Args:
        arena: the arena whose slots are filled.
        reads: number of reads in flight, of each thread that reads itself too; storage reaches its bandwidth only with
            several.
    """

    def __init__(self, arena: PageArena, reads: int) -> None:
        self._host = arena.host
        self._staged = None if arena.staged is None else StagedLoads(arena.staged, self._start)
        self._plain = ThreadReads(reads)  # these bring any pages
        self._ways: list[Reads] = [NativeReads(reads), self._plain] if NATIVE else [self._plain]
        self._most_pages = most_pages(arena.page_bytes)
        self.own_reads = _native.OwnReads(reads=reads, ring=True) if NATIVE else None

    def load(
        self,
        store: VerifyingStore,
        pages: Pages,
        slots: npt.NDArray[np.integer],
        priority: Priority,
        on_read_end: ReadEnd,
    ) -> int:
        """Start to load pages into slots of the arena. Returns the number of reads. Arguments are those of `PageLoad`.

        Raises:
            EngineClosedError: the pager has been closed.
        """
        if self._staged is not None:
            return self._staged.start(store, pages, slots, priority, on_read_end)
        assert self._host is not None
        load = PageLoad(store, self._host, pages, slots, priority, on_read_end)
        with uninterrupted:
            begun = self._ways[0].start(load)
            return self._plain.start(load) if begun is None else begun

    def read(
        self,
        store: VerifyingStore,
        pages: Pages,
        into: npt.NDArray[np.uint8],
        read_timeout: float,
        priority: Priority = Priority.ON_DEMAND,
    ) -> int:
        """Read pages into memory of the caller's own, and wait until all are there and checked.

        No slot, no page table and no load of an arena has to do with it. The caller holds no lock of paging. Returns
        the number of reads.

        Args:
            store: where they come from; it checks them.
            pages: int64 [N], ascending, each once.
            into: uint8 [N, page_bytes], filled in the order of ``pages``; contiguous and aligned as `PageBuffer` says.
            read_timeout: seconds in which no read of the pager ends, after which storage is given up.
            priority: the priority of the reads.

        Raises:
            StoreError, PageCorruptError: a page can't be read, or isn't what it should be; what ``into`` holds may not
                be used, but may be read into again.
            StoreTimeoutError: storage hangs. A late answer may still be written to ``into``, which must be dropped.
            EngineClosedError: the pager has been closed.
        """
        blocking = BlockingRead(len(pages), read_timeout, self.reads_ended)
        load = PageLoad(
            store, PageBuffer(into), pages, np.arange(len(pages)), priority, blocking.on_read_end, cancellable=False
        )
        reads = self._start(load)
        try:
            blocking.wait()
        except BaseException:  # reads that nobody waits for need not begin
            for way in self._ways:
                way.withdraw(load)
            raise
        return reads

    def land(self, store: VerifyingStore, pages: Pages) -> LandedPages | None:
        """Begin to read pages beside the arena. None where that can't be done. See `LandedPages.begin`."""
        return LandedPages.begin(self.own_reads, store, self._host, pages, self._most_pages)

    def reads_ended(self) -> int:
        """How many reads have ended until now, well or not, without those that threads make themselves."""
        return sum(way.reads_ended for way in self._ways)

    @property
    def pages(self) -> set[int]:
        if self._staged is not None:
            return self._staged.pages
        return set().union(*(way.pages for way in self._ways))

    def cancel(self, but: Collection[int] = ()) -> list[int]:
        """Take back all reads that have not begun, except those with pages ``but``.

        What `read` waits for is not taken back. Returns the pages that won't come.
        """
        if self._staged is not None:
            return self._staged.cancel(but)
        return [page for way in self._ways for page in way.cancel(but)]

    def close(self) -> bool:
        """Drop what is queued and end the threads. Returns False if one hangs in a read and had to be left."""
        if self._staged is not None:
            self._staged.stop()
        ends = [way.close() for way in self._ways]
        if self.own_reads is not None:
            ends.append(self.own_reads.close(JOIN_SECONDS))
        if self._staged is not None:
            ends.append(self._staged.join(JOIN_SECONDS if all(ends) else 0.0))
        return all(ends)

    def _start(self, load: PageLoad) -> int:
        with uninterrupted:
            begun = self._ways[0].start(load)
            return self._plain.start(load) if begun is None else begun


class PrefetchedPages:
    """Keeps apart, of the pages that are being loaded, those that nobody waits for, and counts what becomes of them.

    Not thread-safe: its owner holds a lock around every call.

    Attributes:
        ledger: the counts.
        error: why the latest prefetch failed, which the log says too; None if it didn't.
    """

    def __init__(self, pages: int) -> None:
        """Nothing is on its way."""
        self._pages: set[int] = set()
        self.ledger = PrefetchLedger(pages)
        self.error: BaseException | None = None

    def __bool__(self) -> bool:
        return bool(self._pages)

    @property
    def pages(self) -> Collection[int]:
        return self._pages

    def begun(self, pages: Iterable[int]) -> None:
        self.error = None
        self._pages.update(pages)

    def needed(self, pages: Pages, loading: Pages, misses: int) -> None:
        """A task needs its pages, of which some are loading and some will be loaded for it."""
        late = self._pages.intersection(loading.tolist()) if self._pages else ()
        self._pages.difference_update(late)
        self.ledger.needed(pages, len(late), misses)

    def on_read_end(self, pages: Collection[int], error: BaseException | None) -> None:
        """A read of these pages has ended, well or not."""
        if not self._pages:
            return
        came = self._pages.intersection(pages)
        self._pages -= came
        if error is None:
            self.ledger.came(np.array(sorted(came), np.int64))
        elif came:
            if self.error is None:
                _log.warning("a page could not be prefetched: %s", error)
            self.error = error

    def cancelled(self, pages: Iterable[int]) -> None:
        self._pages.difference_update(pages)

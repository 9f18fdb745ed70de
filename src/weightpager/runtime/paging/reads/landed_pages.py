"""Pages that the thread which wants them reads into memory beside the arena."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from weightpager.runtime.memory.page_arena import StageSource
from weightpager.runtime.paging.reads.failures import own_read_error
from weightpager.runtime.planning.plans import Pages
from weightpager.store import VerifyingStore, most_pages
from weightpager.store.switch_cost import SMALL_SWITCH_BYTES

if TYPE_CHECKING:
    from weightpager.kernels import _native

_NO_SLOTS = np.zeros(0, np.int64)


class LandedPages:
    """Pages on their way to memory that is this object's, where they are hashed. Then they are copied into slots.

    No slot has to be free, or belongs to a read that hangs. This memory is beside the budget, and goes back when they
    are dropped. For one thread.

    Attributes:
        pages: int64 [N], ascending.
        reads: how many reads it takes.
        bytes: bytes in these reads.
    """

    def __init__(self, native: _native.LandedPages, store: VerifyingStore, into: StageSource, pages: Pages) -> None:
        self._native = native
        self._store = store
        self._into = into
        self.pages = pages
        self.reads = native.reads
        self.bytes = len(pages) * into.page_bytes

    @classmethod
    def begin(
        cls, own_reads: _native.OwnReads | None, store: VerifyingStore, into: StageSource, pages: Pages
    ) -> LandedPages | None:
        """Begin to read pages.

        None if they are many, must be read another way, or as many threads read as may at once.

        Args:
            own_reads: makes the reads; None without the native module.
            store: where the pages come from; it checks them.
            into: whose slots they are for.
            pages: int64 [N], ascending.
        """
        if own_reads is None or len(pages) * into.page_bytes > SMALL_SWITCH_BYTES:
            return None
        sources = store.sources(pages)
        if sources is None or into.address(_NO_SLOTS) is None:
            return None
        ids = store.index.ids[pages]
        native = own_reads.begin(
            most_pages(into.page_bytes),
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
        memory = self._into.address(wide)
        assert memory is not None
        self._native.place(len(wide), wide.ctypes.data, memory)

    def drop(self) -> None:
        """Let another thread read in their memory. What hangs keeps it until it ends.

        Called once they are in their slots, or won't be. Nothing else may be called after that.
        """
        self._native.drop()

"""The yardstick of a switch: the same reads, made and hashed by plain native threads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.errors import StoreError
from weightpager.lab.direct_reader import new_buffer
from weightpager.store import LocalStore, most_pages

IN_FLIGHT = 8


class RawReads:
    """Reads pages of a bundle as a switch does, into memory of its own, without an engine."""

    def __init__(self, bundle: Bundle) -> None:
        """Open the bundle's page files.

        Raises:
            BundleError, StoreError: they can't be opened.
        """
        self._bundle = bundle
        self._store = LocalStore(bundle)
        memory = new_buffer(max(len(bundle.pages_of(task)) for task in bundle.tasks) * bundle.page_bytes)
        self._rows = np.frombuffer(memory, np.uint8)
        self._rows[:] = 0  # taken before any clock runs

    def seconds(self, pages: npt.NDArray[np.int64]) -> float | None:
        """How long it takes to read and hash these pages, ascending, eight reads in flight.

        Reads are joined as a load's are; threads are there before the clock runs. None without the native module.

        Raises:
            StoreError: a page can't be read, or isn't what it should be.
        """
        try:
            import weightpager.kernels._native as _native
        except ImportError:
            return None
        sources, ids = self._store.sources(pages), self._bundle.pages.ids[pages]
        slots = np.arange(len(pages))
        seconds = _native.raw_reads(
            IN_FLIGHT,
            most_pages(self._bundle.page_bytes),
            len(pages),
            pages.ctypes.data,
            sources.descriptors.ctypes.data,
            sources.offsets.ctypes.data,
            slots.ctypes.data,
            ids.ctypes.data,
            self._rows.ctypes.data,
            self._bundle.page_bytes,
        )
        if seconds < 0:
            raise StoreError(f"{self._bundle.path}: a page can't be read, or isn't what it should be")
        return seconds

    def close(self) -> None:
        """Give back descriptors."""
        self._store.close()

"""Reads past the page cache: of files, as rivals make them, and of a bundle's pages, as a switch does."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.errors import StoreError
from weightpager.kernels.choice import NATIVE
from weightpager.machine.storage import ALIGNMENT, DirectFile, aligned_memory
from weightpager.store import LocalStore, most_pages

_PIECE = 1 << 20


class DirectReader:
    """Reads parts of files past the page cache; its threads run before any clock starts.

    Args:
        threads: reads in flight.
        reading: what a read of so many bytes runs in, such as one that slows it down.
    """

    def __init__(self, threads: int, reading: Callable[[int], AbstractContextManager[None]] | None = None) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._reading = reading
        list(self._pool.map(time.sleep, [0.01] * threads))

    def read(self, path: Path, into: memoryview, offset: int = 0, count: int | None = None) -> int:
        """Open a file and `fill` a buffer from it; how many bytes there were.

        Raises:
            StoreError: the file can't be read, or ends too early.
        """
        try:
            with closing(DirectFile(path)) as file:
                return self.fill(into, file, path, offset, count)
        except OSError as error:
            raise StoreError(f"cannot open {path}: {error.strerror}") from error

    def fill(self, into: memoryview, file: DirectFile, path: Path, offset: int = 0, count: int | None = None) -> int:
        """Fill the start of a buffer with a file's bytes from an aligned offset on; how many there were.

        Args:
            into: page-aligned, of `new_buffer`'s length for so many bytes.
            file: to read from.
            path: of the file, for errors.
            offset: a multiple of `ALIGNMENT`.
            count: how many bytes; None for all that follow.

        Raises:
            StoreError: the file can't be read, or ends too early.
        """
        size = file.size - offset if count is None else count

        def piece(start: int) -> int:
            wanted = min(_PIECE, size - start)
            length = -(-wanted // ALIGNMENT) * ALIGNMENT
            with nullcontext() if self._reading is None else self._reading(length):
                return file.read([into[start : start + length]], offset + start, wanted)

        try:
            filled = sum(self._pool.map(piece, range(0, size, _PIECE)))
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        if filled < size:
            raise StoreError(f"{path}: expected {size} bytes from {offset} on, read {filled}")
        return size

    def close(self) -> None:
        self._pool.shutdown()


def new_buffer(count: int) -> mmap.mmap:
    """Page-aligned memory for so many bytes from any aligned offset on; taken when it is first written to."""
    return aligned_memory(max(1, -(-count // _PIECE)) * _PIECE)


IN_FLIGHT = 8


class RawReads:
    """Reads pages of a bundle as a switch does, into memory of its own, without an engine."""

    available = bool(NATIVE)
    """Whether the native module is there, which makes them."""

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

    def seconds(self, pages: npt.NDArray[np.int64]) -> float:
        """How long it takes to read and hash these pages, ascending, eight reads in flight.

        Reads are joined as a load's are; threads are there before the clock runs.

        Raises:
            ImportError: the native module isn't there.
            StoreError: a page can't be read, or isn't what it should be.
        """
        import weightpager.kernels._native as _native

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
        self._store.close()

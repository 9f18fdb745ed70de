"""The fastest way to read a file whole: several direct reads in flight, into memory that is there already."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

from weightpager.errors import StoreError
from weightpager.machine.direct_file import ALIGNMENT, DirectFile, aligned_memory

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
        """End the threads."""
        self._pool.shutdown()


def new_buffer(count: int) -> mmap.mmap:
    """Page-aligned memory for so many bytes from any aligned offset on; taken when it is first written to."""
    return aligned_memory(max(1, -(-count // _PIECE)) * _PIECE)

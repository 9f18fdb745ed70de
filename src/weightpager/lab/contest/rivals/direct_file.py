"""The fastest way to read a file whole: several direct reads in flight, into memory that is there already."""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from weightpager.errors import StoreError
from weightpager.lab.contest.rivals.pace import Pace

ALIGNMENT = 4096
_PIECE = 1 << 20


def room_for(count: int) -> int:
    """Bytes that a buffer needs to take so many from any aligned offset on: whole pieces."""
    return -(-count // _PIECE) * _PIECE


class DirectReader:
    """Reads parts of files past the page cache; its threads run before any clock starts.

    Attributes:
        direct: whether the last file was read directly.
    """

    def __init__(self, threads: int, pace: Pace | None = None) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._pace = pace
        self.direct = True

    def read(self, path: Path, into: memoryview, offset: int = 0, count: int | None = None) -> int:
        """Fill the start of a buffer with a file's bytes from an aligned offset on; how many there were.

        Args:
            path: of the file.
            into: page-aligned, at least `room_for` the bytes long.
            offset: a multiple of `ALIGNMENT`.
            count: how many bytes; None for all that follow.

        Raises:
            StoreError: the file can't be read, or ends too early.
        """
        try:
            descriptor = self._open(path)
        except OSError as error:
            raise StoreError(f"cannot open {path}: {error.strerror}") from error
        try:
            size = os.fstat(descriptor).st_size - offset if count is None else count
            starts = range(0, size, _PIECE)
            found = sum(self._pool.map(lambda start: self._piece(descriptor, into, offset, start, size), starts))
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        if found < size:
            raise StoreError(f"{path}: expected {size} bytes from {offset} on, read {found}")
        return size

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _open(self, path: Path) -> int:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            self.direct = True
        except OSError:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.direct = False
        return descriptor

    def _piece(self, descriptor: int, into: memoryview, offset: int, start: int, size: int) -> int:
        length = min(_PIECE, -(-(size - start) // ALIGNMENT) * ALIGNMENT)
        with nullcontext() if self._pace is None else self._pace.reading(length):
            return os.preadv(descriptor, [into[start : start + length]], offset + start)


def new_buffer(count: int) -> mmap.mmap:
    """Page-aligned memory for so many bytes; taken when it is first written to."""
    return mmap.mmap(-1, max(room_for(count), _PIECE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

"""`DirectFile`: a file that is read past the page cache where its file system can."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

from weightpager.interrupts import uninterrupted

_NORESERVE = 0x4000  # which Python doesn't name before 3.11

ALIGNMENT = 4096
"""Direct reads want offsets, lengths and addresses on this boundary."""

MOST_VIEWS = 1024
"""Linux takes at most so many buffers in one preadv."""


class DirectFile:
    """A file that is open for reading; several threads may read at once.

    Attributes:
        direct: whether reads bypass the page cache (O_DIRECT).
        descriptor: the open file's descriptor.
    """

    @uninterrupted
    def __init__(self, path: Path, *, direct: bool = True, cached: bool = True) -> None:
        """Open a file.

        Args:
            path: of the file.
            direct: bypass the page cache.
            cached: read through the page cache where the file system has no direct reads.

        Raises:
            OSError: it can't be opened; EINVAL where it could only be read through the page cache.
        """
        self.direct = direct
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags | (os.O_DIRECT if direct else 0))
        except OSError as error:
            if not (direct and cached and error.errno == errno.EINVAL):
                raise
            descriptor, self.direct = os.open(path, flags), False
        self._file = FileIO(descriptor)  # closes it if nobody else does
        self.descriptor = descriptor

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self.descriptor).st_size

    def read(self, into: Sequence[memoryview], offset: int, wanted: int | None = None) -> int:
        """Fill buffers, one after the other, from an offset on; bytes read, fewer than wanted where the file ends.

        Args:
            into: at most `MOST_VIEWS`; for direct reads aligned, as is the offset.
            offset: in the file.
            wanted: bytes to read at least; None for all that the buffers hold. The last buffer may be longer, since a
                direct read of a file's end is for a whole multiple of `ALIGNMENT`.

        Raises:
            OSError: the storage failed.
        """
        wanted, done = sum(map(len, into)) if wanted is None else wanted, 0
        while done < wanted:
            count = os.preadv(self.descriptor, into, offset + done)
            if count == 0:
                break
            done += count
            if done < wanted:  # storage may return less than was asked for
                into = _rest(into, count)
        return done

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()


def aligned_memory(count: int) -> mmap.mmap:
    """Page-aligned memory for so many bytes; taken when it is first written to."""
    return mmap.mmap(-1, count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def address_space(count: int) -> mmap.mmap:
    """As `aligned_memory`, and no promise of the machine's that it has so much.

    Raises:
        OSError: it refuses even that.
    """
    return mmap.mmap(-1, count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)


def _rest(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left to fill after ``count`` bytes."""
    for number, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[number + 1 :]]
        count -= len(view)
    return []

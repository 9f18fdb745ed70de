"""Ordinary files: what else may lie in a directory is not opened."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from io import BufferedReader, FileIO
from pathlib import Path
from typing import BinaryIO

from weightpager.errors import WeightpagerError
from weightpager.interrupts import uninterrupted

_NO_MATTER = 2**20  # files of up to so many bytes are not checked for holes
_LEAST_STORED = 4
"""At least one byte of so many must be stored. Honest files have zeros, which a copy may turn into holes."""


@uninterrupted
def open_regular(path: Path) -> BinaryIO:
    """Open an ordinary file for reading, or a link to one: a FIFO could wait for ever, a device may never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "no ordinary file", os.fspath(path))
        file = FileIO(descriptor)  # which closes it from now on
    except BaseException:
        os.close(descriptor)
        raise
    return BufferedReader(file)


def is_hollow(file: BinaryIO, size: int) -> bool:
    """Whether a file is mostly holes: such a file costs nothing to store, and much to read.

    One of up to a mebibyte counts as whole, or where holes aren't reported. The file's position is 0 afterwards.
    """
    if size <= _NO_MATTER:
        return False
    stored = 0
    with closing(_stored(file.fileno(), 0, size)) as parts:
        for start, end in parts:
            stored += end - start
            if stored * _LEAST_STORED >= size:
                return False
    return True


def is_hole(descriptor: int, start: int, end: int) -> bool:
    """Whether this part of a file is a hole, and so all zeros. Moves the file's position."""
    with closing(_stored(descriptor, start, end)) as parts:
        return next(parts, None) is None


def has_hole(descriptor: int, start: int, end: int) -> bool:
    """Whether any of this part of a file is a hole. Moves the file's position."""
    with closing(_stored(descriptor, start, end)) as parts:
        return sum(last - first for first, last in parts) < end - start


def _stored(descriptor: int, start: int, end: int) -> Generator[tuple[int, int], None, None]:
    """The parts of a file that are stored. The file's position is 0 afterwards."""
    try:
        while start < end:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
            hole = os.lseek(descriptor, start, os.SEEK_HOLE)
            if start < end:
                yield start, min(end, hole)
            start = hole
    except OSError as error:
        if error.errno != errno.ENXIO:  # which says that there are holes to the end
            yield start, end
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)


@contextmanager
def storage_errors_as(kind: type[WeightpagerError], what: str, then: str = "") -> Iterator[None]:
    """Turn an `OSError` of the storage into an error of ours; names the file, or else ``what``, then ``then``."""
    try:
        yield
    except OSError as error:
        raise kind(f"cannot write {error.filename or what}: {error.strerror or error}{then}") from error

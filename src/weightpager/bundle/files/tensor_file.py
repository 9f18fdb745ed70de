"""A bundle's safetensors files: what the header states is checked before its hash, and that before a value is used.

The engine, `verify` and all else read them here, so that none takes what another one refuses. No value is read through
a mapping: storage that fails, or a file that becomes shorter, would end the process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from weightpager.bundle.files.entry import FileEntry, check_content, check_hash, open_entry
from weightpager.bundle.files.tensor_header import LENGTH, LONGEST, Header, TensorInfo, parse_header
from weightpager.errors import BundleFormatError

_MOST_AT_ONCE = 1 << 30
"""Bytes of a read; the system reads no more than 2 GiB."""


def read_arrays(
    root: Path, name: str, entry: FileEntry, check: Callable[[Header], object]
) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a file, of dtypes that numpy has. They share memory for the file, which has been read once.

    Args:
        root: bundle directory.
        name: of the file.
        entry: the manifest's.
        check: refuses a header that nothing justifies, before the file is read.

    Raises:
        BundleFormatError: it is missing, damaged, or no such file.
    """
    with _opened(root, name, entry) as opened:
        check(opened.header)
        content, read = bytearray(entry.bytes), len(opened.start)
        content[:read] = opened.start
        _read(opened.file, read, memoryview(content)[read:], name)
    check_content(content, name, entry)
    return {key: _array(content, opened.places[key], stated) for key, stated in opened.header.items()}


class StoredTensors:
    """The tensors of a checked file, read one at a time to where the caller wants them.

    Attributes:
        header: what the file states.
    """

    def __init__(self, file: BinaryIO, header: Header, places: Mapping[str, int]) -> None:
        self.header = header
        self._file = file
        self._places = places

    def read(self, name: str, into: memoryview) -> None:
        """Read a tensor's bytes, little-endian, into memory of just their size.

        Raises:
            OSError: the file can't be read, or has become shorter.
        """
        _read(self._file, self._places[name], into, name)


@contextmanager
def stored_tensors(
    root: Path, name: str, entry: FileEntry, check: Callable[[Header], object]
) -> Iterator[StoredTensors]:
    """A checked file whose tensors of any dtype can be read. Arguments and errors are those of `read_arrays`."""
    with _opened(root, name, entry) as opened:
        check(opened.header)
        check_hash(opened.file, name, entry)
        try:
            yield StoredTensors(opened.file, opened.header, opened.places)
        except OSError as error:
            raise BundleFormatError(name, "file", "a readable file", error) from error


def read_header(root: Path, name: str, entry: FileEntry) -> Header:
    """A file's header. Its size is checked against the manifest entry, its hash is not.

    Raises:
        BundleFormatError: it is missing, of another size, or no such file.
    """
    with _opened(root, name, entry) as opened:
        return opened.header


@dataclass(frozen=True)
class _Opened:
    """An open file whose header has been read and checked.

    Attributes:
        file: the file.
        start: the bytes with which it begins: the header, and its length before it.
        header: what it states.
        places: where each tensor begins, in bytes from the file's start.
    """

    file: BinaryIO
    start: bytes
    header: Header
    places: Mapping[str, int]


@contextmanager
def _opened(root: Path, name: str, entry: FileEntry) -> Iterator[_Opened]:
    with open_entry(root, name, entry) as file:
        yield _checked(name, file, _start(file, entry), entry.bytes)


def _start(file: BinaryIO, entry: FileEntry) -> bytes:
    """A file's header and its length, as far as the file and safetensors allow."""
    stated = int.from_bytes(os.pread(file.fileno(), LENGTH, 0), "little")
    start = bytearray(min(entry.bytes, LENGTH + (stated if stated <= LONGEST else 0)))
    _read(file, 0, memoryview(start), "its header")
    return bytes(start)


def _read(file: BinaryIO, at: int, into: memoryview, what: str) -> None:
    """Fill memory from a place in a file. An `OSError` says that it can't be read, or has become shorter."""
    while into:
        count = os.preadv(file.fileno(), [into[:_MOST_AT_ONCE]], at)
        if not count:
            raise OSError(f"the file ends within {what}")
        at, into = at + count, into[count:]


def _checked(name: str, file: BinaryIO, start: bytes, size: int) -> _Opened:
    try:
        header, places = parse_header(start, size)
    except ValueError as error:
        raise BundleFormatError(name, "content", "a safetensors file", str(error)[:200]) from error
    return _Opened(file, start, header, places)


def _array(content: bytearray, place: int, stated: TensorInfo) -> npt.NDArray[Any]:
    """A tensor in the content of a file, or a copy where it isn't aligned."""
    return np.require(np.ndarray(stated.shape, stated.dtype, content, place), requirements="A")

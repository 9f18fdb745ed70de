"""A bundle's safetensors files: what the header states is checked before its hash, and that before a value is used.

The engine, `verify` and all else read them here, so that none takes what another one refuses. No value is read through
a mapping: storage that fails, or a file that becomes shorter, would end the process.

A header must describe every byte of its file, and once, as safetensors demands. safetensors itself isn't called, since
it opens files by name: what has been opened has a name only where ``/proc`` is mounted, and what lies at its path may
be another file by then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from weightpager.bundle.files.entry import FileEntry, check_content, check_hash, open_entry
from weightpager.errors import BundleFormatError

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip

_METADATA = "__metadata__"
_COUNTS = 1 << 64
"""Numbers in a header, and bytes of a tensor, are less."""

LENGTH = 8
"""Bytes of the header's length, with which a file begins."""

LONGEST = 100_000_000
"""Bytes of the longest header that safetensors takes."""


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of a tensor: numpy's name of its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"[:80]


Header = Mapping[str, TensorInfo]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def parse_header(start: bytes, size: int) -> tuple[Header, dict[str, int]]:
    """What a header states of each tensor, and where the tensor begins, in bytes from the file's start.

    Args:
        start: the header, its length before it.
        size: bytes of the file.

    Raises:
        ValueError: the file is no safetensors file, or has dtypes that numpy and bfloat16 don't cover.
    """
    length = int.from_bytes(start[:LENGTH], "little")
    if len(start) < LENGTH or length > LONGEST or len(start) != LENGTH + length:
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    entries = _entries(start[LENGTH:])
    _check_offsets(entries, size - len(start))
    header = {name: TensorInfo(_DTYPES[entry.dtype], entry.shape) for name, entry in entries.items()}
    return header, {name: len(start) + entry.data_offsets[0] for name, entry in entries.items()}


def _entries(text: bytes) -> dict[str, _Entry]:
    try:
        document = json.loads(
            text.decode(),
            object_pairs_hook=_each_once,
            parse_int=_count,
            parse_float=_no_count,
            parse_constant=_no_count,
        )
        msgspec.json.encode(document)  # refuses halves of surrogate pairs
    except RecursionError:
        raise ValueError("a header of many levels") from None
    if not isinstance(document, dict):
        raise ValueError("a header that is no JSON object")
    msgspec.convert(document.pop(_METADATA, None), dict[str, str] | None)
    return msgspec.convert(document, dict[str, _Entry])


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. JSON leaves open which of two values of a name counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that is stated twice")
    return found


def _count(digits: str) -> int:
    number = int(digits) if digits.isdigit() and len(digits) <= len(str(_COUNTS)) else _COUNTS
    return number if number < _COUNTS else _no_count(digits)


def _no_count(number: str) -> int:
    raise ValueError(f"the number {number[:40]}, which counts nothing")


def _check_offsets(entries: Mapping[str, _Entry], size: int) -> None:
    """Refuse tensors that leave a gap, overlap, take other bytes than their shape does, or don't fill the file."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        first, until = entry.data_offsets
        if (first, until) != (end, end + _bytes(name, entry)):
            raise ValueError(f"tensor {name[:80]!r} of bytes {first} to {until}, not as many from {end} on as it has")
        end = until
    if end != size:
        raise ValueError(f"tensors of {end} bytes in all, and {size} behind the header")


def _bytes(name: str, entry: _Entry) -> int:
    if entry.dtype not in _DTYPES:
        raise ValueError(f"tensor {name[:80]!r} of dtype {entry.dtype[:40]!r}")
    dtype = _DTYPES[entry.dtype]
    total = 1
    for axis in (*entry.shape, 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize):
        total *= axis
        if total >= _COUNTS:
            raise ValueError(f"tensor {name[:80]!r} of 2^64 values or more")
    return total


_MOST_AT_ONCE = 1 << 30
"""Bytes of a read; the system reads no more than 2 GiB."""


def read_arrays(
    root: Path, name: str, entry: FileEntry, check: Callable[[Header], object]
) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a file, of dtypes that numpy has. They share memory for the file, which has been read once.

    ``check`` refuses a header that nothing justifies, before the file is read.
    """
    with _opened(root, name, entry) as opened:
        check(opened.header)
        content, read = bytearray(entry.bytes), len(opened.start)
        content[:read] = opened.start
        _read(opened.file, read, memoryview(content)[read:], name)
    check_content(content, name, entry)
    return {key: _array(content, opened.places[key], stated) for key, stated in opened.header.items()}


def exactly(name: str, wanted: Header) -> Callable[[Header], None]:
    """A check that refuses a file which doesn't hold just these tensors."""

    def check(header: Header) -> None:
        if header.keys() != wanted.keys():
            raise BundleFormatError(name, "tensors", str(sorted(wanted))[:400], str(sorted(header))[:400])
        for key, expected in wanted.items():
            if header[key] != expected:
                raise BundleFormatError(name, key, expected, header[key])

    return check


class StoredTensors:
    """The tensors of a checked file, read one at a time to where the caller wants them."""

    def __init__(self, file: BinaryIO, header: Header, places: Mapping[str, int]) -> None:
        self.header = header
        self._file = file
        self._places = places

    def read(self, name: str, into: memoryview) -> None:
        """Read a tensor's bytes, little-endian, into memory of just their size.

        An `OSError` says that the file can't be read, or has become shorter.
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
    """A file's header. Its size is checked against the manifest entry, its hash is not."""
    with _opened(root, name, entry) as opened:
        return opened.header


@dataclass(frozen=True)
class _Opened:
    """An open file whose header has been checked.

    ``start`` is the header, its length before it; ``places`` says where each tensor begins in the file.
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

"""A bundle's safetensors files: what the header states is checked before the hash, and the hash before a value is read.

The engine, `verify` and all else read them here, so that none takes what another one refuses.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from weightpager.bundle.files.entry import FileEntry, check_hash, open_entry
from weightpager.errors import BundleFormatError

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip


_LENGTH = 8
"""Bytes of the header's length, with which a file begins."""

_MOST_AT_ONCE = 1 << 30
"""Bytes of a read; the system reads no more than 2 GiB."""


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of a tensor: numpy's name of its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"[:80]


Header = Mapping[str, TensorInfo]


@contextmanager
def checked_tensors(root: Path, name: str, entry: FileEntry, check: Callable[[Header], object]) -> Iterator[Any]:
    """Open a safetensors file and check it against its manifest entry; the file that was checked stays open.

    Args:
        root: bundle directory.
        name: of the file.
        entry: the manifest's.
        check: refuses a header that nothing justifies, before the file is read.

    Raises:
        BundleFormatError: it is missing, damaged, or no such file.
    """
    with _opened(root, name, entry) as (file, tensors):
        check(_header(tensors))
        check_hash(file, name, entry)
        yield tensors


def read_arrays(
    root: Path, name: str, entry: FileEntry, check: Callable[[Header], object]
) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a file, in memory of their own. Arguments and errors are those of `checked_tensors`."""
    with checked_tensors(root, name, entry, check) as tensors:
        return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118 - no mapping


class StoredTensors:
    """The tensors of a checked file, read one at a time to where the caller wants them.

    Attributes:
        header: what the file states.
    """

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self.header = header
        self._file = file
        (length,) = struct.unpack("<Q", os.pread(file.fileno(), _LENGTH, 0))
        stated = json.loads(os.pread(file.fileno(), length, _LENGTH))  # safetensors has opened it: no hostile header
        self._starts = {name: _LENGTH + length + stated[name]["data_offsets"][0] for name in header}

    def read(self, name: str, into: memoryview) -> None:
        """Read a tensor's bytes, little-endian, into memory of just their size.

        Raises:
            OSError: the file can't be read, or has become shorter.
        """
        at, left = self._starts[name], into
        while left:
            count = os.preadv(self._file.fileno(), [left[:_MOST_AT_ONCE]], at)
            if not count:
                raise OSError(f"the file ends within {name}")
            at, left = at + count, left[count:]


@contextmanager
def stored_tensors(
    root: Path, name: str, entry: FileEntry, check: Callable[[Header], object]
) -> Iterator[StoredTensors]:
    """A checked file whose tensors of any dtype can be read. Arguments and errors are those of `checked_tensors`."""
    with _opened(root, name, entry) as (file, tensors):
        header = _header(tensors)
        check(header)
        check_hash(file, name, entry)
        try:
            yield StoredTensors(file, header)
        except OSError as error:
            raise BundleFormatError(name, "file", "a readable file", error) from error


def read_header(root: Path, name: str, entry: FileEntry) -> Header:
    """A file's header. Its size is checked against the manifest entry, its hash is not.

    Raises:
        BundleFormatError: it is missing, of another size, or no such file.
    """
    with _opened(root, name, entry) as (_, tensors):
        return _header(tensors)


@contextmanager
def _opened(root: Path, name: str, entry: FileEntry) -> Iterator[tuple[BinaryIO, Any]]:
    with open_entry(root, name, entry) as file:
        try:
            tensors = safe_open(f"/proc/self/fd/{file.fileno()}", framework="np")
        except (SafetensorError, OSError) as error:
            raise BundleFormatError(name, "content", "a safetensors file", error) from error
        with tensors:
            yield file, tensors


def _header(tensors: Any) -> Header:
    slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118 - no mapping
    return {
        key: TensorInfo(_DTYPES.get(of.get_dtype(), of.get_dtype()), tuple(of.get_shape()))
        for key, of in slices.items()
    }

"""A bundle's safetensors files: what the header states is checked before the hash, and the hash before a value is read.

The engine, `verify` and all else read them here, so that none takes what another one refuses.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Stated:
    """What a header says of a tensor, in numpy's words."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"[:80]


Header = Mapping[str, Stated]


@contextmanager
def checked_tensors(
    root: Path, name: str, entry: FileEntry, check: Callable[[Header], object], framework: str = "np"
) -> Iterator[Any]:
    """Open a safetensors file and check it against its manifest entry; the file that was checked stays open.

    Args:
        root: bundle directory.
        name: of the file.
        entry: the manifest's.
        check: refuses a header that nothing justifies, before the file is read.
        framework: whose tensors ``get_tensor`` gives.

    Raises:
        BundleFormatError: it is missing, damaged, or no such file.
    """
    with _opened(root, name, entry, framework) as (file, tensors):
        check(_header(tensors))
        check_hash(file, name, entry)
        yield tensors


def read_arrays(
    root: Path, name: str, entry: FileEntry, check: Callable[[Header], object]
) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a file, in memory of their own. Arguments and errors are those of `checked_tensors`."""
    with checked_tensors(root, name, entry, check) as tensors:
        return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118 - no mapping


def read_header(root: Path, name: str, entry: FileEntry) -> Header:
    """A file's header. Its size is checked against the manifest entry, its hash is not.

    Raises:
        BundleFormatError: it is missing, of another size, or no such file.
    """
    with _opened(root, name, entry, "np") as (_, tensors):
        return _header(tensors)


@contextmanager
def _opened(root: Path, name: str, entry: FileEntry, framework: str) -> Iterator[tuple[BinaryIO, Any]]:
    with open_entry(root, name, entry) as file:
        try:
            tensors = safe_open(f"/proc/self/fd/{file.fileno()}", framework=framework)
        except (SafetensorError, OSError) as error:
            raise BundleFormatError(name, "content", "a safetensors file", error) from error
        with tensors:
            yield file, tensors


def _header(tensors: Any) -> Header:
    slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118 - no mapping
    return {
        key: Stated(_DTYPES.get(of.get_dtype(), of.get_dtype()), tuple(of.get_shape())) for key, of in slices.items()
    }

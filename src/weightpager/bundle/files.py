"""Reading and hashing the ordinary files of a bundle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy.typing as npt
from blake3 import blake3
from safetensors import SafetensorError
from safetensors.numpy import load

from weightpager.bundle.manifest import FileEntry
from weightpager.bundle.regular_file import open_regular
from weightpager.errors import BundleFormatError


def hash_file(path: Path) -> FileEntry:
    """Size and BLAKE3 of a file, read in pieces."""
    with path.open("rb") as file:
        return _hash(file)


def _hash(file: BinaryIO) -> FileEntry:
    digest = blake3()
    size = 0
    while piece := file.read(1 << 20):
        digest.update(piece)
        size += len(piece)
    return FileEntry(bytes=size, blake3=digest.hexdigest())


def check_file(root: Path, name: str, entry: FileEntry) -> Path:
    """Compare a file with its manifest entry; its path.

    Raises:
        BundleFormatError: the file is missing, has another size, or another hash.
    """
    with checked_file(root, name, entry):
        return root / name


@contextmanager
def checked_file(root: Path, name: str, entry: FileEntry) -> Iterator[Path]:
    """A path to a file that is compared with its manifest entry first, and stays open: no other can take its place.

    Raises:
        BundleFormatError: as `check_file`.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_regular(root / name))
            size = os.fstat(file.fileno()).st_size
            if size != entry.bytes:
                raise BundleFormatError(name, "size", f"{entry.bytes} bytes", f"{size} bytes")
            found = _hash(file)
        except OSError as error:
            raise BundleFormatError(name, "file", "a readable file", error.strerror or error) from error
        if found.blake3 != entry.blake3:
            raise BundleFormatError(name, "BLAKE3", entry.blake3, found.blake3)
        yield Path(f"/proc/self/fd/{file.fileno()}")


def read_checked(root: Path, name: str, entry: FileEntry) -> bytes:
    """A file's bytes, of which size and hash are those of its entry: what is checked is what is used."""
    path = root / name
    try:
        with open_regular(path) as file:
            # Before reading: the entry of a hostile manifest may ask for more memory than there is.
            size = os.fstat(file.fileno()).st_size
            content = file.read(entry.bytes) if size == entry.bytes else b""
    except OSError as error:
        raise BundleFormatError(name, "file", "a readable file", error.strerror or error) from error
    if size != entry.bytes or len(content) != size:
        raise BundleFormatError(name, "size", f"{entry.bytes} bytes", f"{size} bytes")
    found = blake3(content).hexdigest()
    if found != entry.blake3:
        raise BundleFormatError(name, "BLAKE3", entry.blake3, found)
    return content


def parse_arrays(name: str, content: bytes) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a safetensors file.

    Raises:
        BundleFormatError: it is not one.
    """
    try:
        arrays: dict[str, npt.NDArray[Any]] = load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleFormatError(name, "content", "a safetensors file of numpy dtypes", error) from error
    return arrays

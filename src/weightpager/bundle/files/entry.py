"""Reading and hashing the ordinary files of a bundle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

from blake3 import blake3
from msgspec import Meta

from weightpager.bundle.files.regular_file import is_hollow, open_regular
from weightpager.bundle.files.strict import Strict
from weightpager.errors import BundleFormatError

Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class FileEntry(Strict, frozen=True, kw_only=True):
    """Size and BLAKE3 hash, in hexadecimal digits, of one file, as the manifest states them."""

    bytes: Annotated[int, Meta(ge=0, lt=2**48)]
    blake3: Hash


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


@contextmanager
def open_entry(root: Path, name: str, entry: FileEntry) -> Iterator[BinaryIO]:
    """Open a file, and refuse one that has another size than its manifest entry says, or is mostly holes."""
    try:
        with open_regular(root / name) as file:
            # Before reading: the entry of a hostile manifest may ask for more memory than there is.
            size = os.fstat(file.fileno()).st_size
            if size != entry.bytes:
                raise BundleFormatError(name, "size", f"{entry.bytes} bytes", f"{size} bytes")
            if is_hollow(file, size):
                found = "holes for the most part; copy it again, without holes"
                raise BundleFormatError(name, "size", f"{size} stored bytes", found)
            yield file
    except OSError as error:
        raise BundleFormatError(name, "file", "a readable file", error.strerror or error) from error


def check_hash(file: BinaryIO, name: str, entry: FileEntry) -> None:
    """Compare an open file with its manifest entry, in pieces."""
    _compare(_hash(file).blake3, name, entry)


def check_content(content: bytes | bytearray, name: str, entry: FileEntry) -> None:
    """Compare what has been read of a file with its manifest entry."""
    _compare(blake3(content).hexdigest(), name, entry)


def _compare(found: str, name: str, entry: FileEntry) -> None:
    if found != entry.blake3:
        raise BundleFormatError(name, "BLAKE3", entry.blake3, found)


def check_file(root: Path, name: str, entry: FileEntry) -> Path:
    """Compare a file with its manifest entry; its path."""
    with open_entry(root, name, entry) as file:
        check_hash(file, name, entry)
    return root / name


def read_checked(root: Path, name: str, entry: FileEntry) -> bytes:
    """Read a file once and compare size and hash with its entry, so that the bytes returned are the bytes checked."""
    with open_entry(root, name, entry) as file:
        content = file.read(entry.bytes)
    check_content(content, name, entry)
    return content

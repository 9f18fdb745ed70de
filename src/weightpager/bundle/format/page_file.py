"""``pages-NNNN.safetensors``: one uint8 tensor ``pages`` of ``[pages, page_bytes]``, its data on a 4096-byte boundary.

The header is padded with spaces, which the safetensors format allows, so that direct reads land straight in arena
slots. A reader accepts exactly one header for a given shape: nothing in the file is left unchecked, since the pages
themselves are covered by their ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO

from blake3 import blake3

from weightpager.bundle.files.regular_file import is_hole, open_regular
from weightpager.errors import BundleFormatError

ALIGNMENT = 4096
"""Direct I/O wants offsets, lengths and addresses on this boundary."""

_FILE_BYTES = 4 << 30
"""Page files are cut here, which every file system can hold."""

_PIECE = 2**20  # bytes that are read at once


def file_name(number: int) -> str:
    """Name of page file ``number``."""
    return f"pages-{number:04d}.safetensors"


def row_file_name(number: int) -> str:
    """Name of page file ``number`` of those that hold rows."""
    return f"rows-{number:04d}.safetensors"


def page_ranges(page_files: Sequence[int], row_files: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """Name of each page file, its first page and how many pages it has: files of blocks, then those of rows.

    Args:
        page_files: pages in each file of blocks.
        row_files: pages in each file of rows.
    """
    first = 0
    for name, counts in ((file_name, page_files), (row_file_name, row_files)):
        for number, count in enumerate(counts):
            yield name(number), first, count
            first += count


def file_counts(pages: int, page_bytes: int) -> list[int]:
    """Pages in each page file, where there are so many."""
    most = max(1, _FILE_BYTES // page_bytes)
    return [min(most, pages - start) for start in range(0, pages, most)]


def header(pages: int, page_bytes: int) -> bytes:
    """The only valid header of a file with that many pages, padded so that data starts on `ALIGNMENT`."""
    entry = {"dtype": "U8", "shape": [pages, page_bytes], "data_offsets": [0, pages * page_bytes]}
    text = json.dumps({"pages": entry}, separators=(",", ":")).encode()
    padded = -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT - 8
    return padded.to_bytes(8, "little") + text.ljust(padded)


def write(file: IO[bytes], pages: Iterable[bytes], count: int, page_bytes: int) -> None:
    """Write ``count`` pages after their header."""
    file.write(header(count, page_bytes))
    for page in pages:
        file.write(page)


def frame(path: Path, pages: int, page_bytes: int) -> None:
    """Give a file the size and header for that many pages. A missing file is created, and no page changes.

    Raises:
        OSError: the storage refused it.
    """
    start = header(pages, page_bytes)
    path.touch()
    with path.open("r+b", buffering=0) as file:
        file.truncate(len(start) + pages * page_bytes)
        write_at(file.fileno(), start, 0)
        os.fsync(file.fileno())


def write_at(descriptor: int, content: bytes | bytearray, offset: int) -> None:
    """Write all of ``content`` in place: one system call may take less.

    Raises:
        OSError: the storage refused it.
    """
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


class PageHashes:
    """BLAKE3 of an open page file's pages, read in pieces: a page may be of 256 MiB.

    A page in a hole is zero. The hash of zeros is computed once, since a file of holes may have any size.
    """

    def __init__(self, descriptor: int, page_bytes: int) -> None:
        self._descriptor = descriptor
        self._page_bytes = page_bytes

    def at(self, offset: int) -> bytes:
        """The hash of the page at this offset.

        Raises:
            OSError: the storage refused it.
        """
        if is_hole(self._descriptor, offset, offset + self._page_bytes):
            return self._of_zeros
        return self._digest(lambda start, size: os.pread(self._descriptor, size, offset + start))

    @cached_property
    def _of_zeros(self) -> bytes:
        zeros = bytes(min(_PIECE, self._page_bytes))
        return self._digest(lambda _, size: zeros[:size])

    def _digest(self, read: Callable[[int, int], bytes]) -> bytes:
        digest, done = blake3(), 0
        while done < self._page_bytes and (piece := read(done, min(_PIECE, self._page_bytes - done))):
            digest.update(piece)
            done += len(piece)
        return digest.digest()


def check(path: Path, pages: int, page_bytes: int) -> int:
    """Check size and header; the offset of page 0.

    Raises:
        BundleFormatError: the file isn't exactly what its manifest entry says.
    """
    wanted = header(pages, page_bytes)
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            found = file.read(len(wanted))
    except OSError as error:
        raise BundleFormatError(path.name, "file", "a readable file", error.strerror or error) from error
    if size != len(wanted) + pages * page_bytes:
        raise BundleFormatError(path.name, "size", f"{len(wanted) + pages * page_bytes} bytes", f"{size} bytes")
    if found != wanted:
        raise BundleFormatError(path.name, "header", f"that of {pages} pages of {page_bytes} bytes", "another one")
    return len(wanted)

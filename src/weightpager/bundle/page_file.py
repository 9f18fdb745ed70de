"""``pages-NNNN.safetensors``: one uint8 tensor ``pages`` of ``[pages, page_bytes]``, its data on a 4096-byte boundary.

The header is padded with spaces, which the safetensors format allows, so that direct reads land straight in arena
slots. A reader accepts exactly one header for a given shape: nothing in the file is left unchecked, since the pages
themselves are covered by their ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from weightpager.bundle.regular_file import open_regular
from weightpager.errors import BundleFormatError

ALIGNMENT = 4096
"""Direct I/O wants offsets, lengths and addresses on this boundary."""


def file_name(number: int) -> str:
    """Name of page file ``number``."""
    return f"pages-{number:04d}.safetensors"


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
    """Give a file the size and header of that many pages; it is created if it is missing. No page of it changes.

    Raises:
        OSError: the storage refused it.
    """
    start = header(pages, page_bytes)
    path.touch()
    with path.open("r+b", buffering=0) as file:
        file.truncate(len(start) + pages * page_bytes)
        write_at(file.fileno(), start, 0)
        os.fsync(file.fileno())


def write_at(descriptor: int, content: bytes, offset: int) -> None:
    """Write all of ``content`` in place: one system call may take less.

    Raises:
        OSError: the storage refused it.
    """
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


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

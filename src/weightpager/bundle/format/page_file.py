"""``pages-NNNN.safetensors``: one uint8 tensor ``pages`` of ``[pages, page_bytes]``, its data on a 4096-byte boundary.

The header is padded with spaces, which the safetensors format allows, so that direct reads land straight in arena
slots. A reader accepts exactly one header for a given shape: nothing in the file is left unchecked, since the pages
themselves are covered by their ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from weightpager.bundle.files.regular_file import is_hole, open_regular
from weightpager.bundle.files.tensor_file import Header, TensorInfo
from weightpager.errors import BundleFormatError

ALIGNMENT = 4096
"""Direct I/O wants offsets, lengths and addresses on this boundary."""

_FILE_BYTES = 4 << 30
"""Page files are cut here, which every file system can hold."""

_PIECE = 2**20  # bytes that are read at once


def file_name(number: int) -> str:
    return f"pages-{number:04d}.safetensors"


def row_file_name(number: int) -> str:
    return f"rows-{number:04d}.safetensors"


def page_ranges(page_files: Sequence[int], row_files: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """Name of each page file, its first page and how many pages it has: files of blocks, then those of rows."""
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
    file.write(header(count, page_bytes))
    for page in pages:
        file.write(page)


def frame(path: Path, pages: int, page_bytes: int) -> None:
    """Give a file the size and header for that many pages. A missing file is created, and no page changes."""
    start = header(pages, page_bytes)
    path.touch()
    with path.open("r+b", buffering=0) as file:
        file.truncate(len(start) + pages * page_bytes)
        write_at(file.fileno(), start, 0)
        os.fsync(file.fileno())


def write_at(descriptor: int, content: bytes | bytearray, offset: int) -> None:
    """Write all of ``content`` in place: one system call may take less."""
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
        """The hash of the page at this offset."""
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
    """Check size and header; the offset of page 0."""
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


FILE = "page-index.safetensors"


@dataclass(frozen=True)
class PageIndex:
    """What ``page-index.safetensors`` says of the pages, in bundle order.

    Pages of rows come last. Their layer is 0, and no task's blocks are in them.

    Attributes:
        ids: uint8 [pages, 32], BLAKE3 digests.
        layers: int32 [pages], the model layer of each.
        signatures: uint64 [pages], bit t set where task t needs the page.
    """

    ids: npt.NDArray[np.uint8]
    layers: npt.NDArray[np.int32]
    signatures: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.layers)

    def of_task(self, task: int) -> npt.NDArray[np.int64]:
        """Indices of the pages that task number ``task`` needs, ascending."""
        return np.flatnonzero((self.signatures >> np.uint64(task)) & np.uint64(1))

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        return {"ids": self.ids, "layers": self.layers, "signatures": self.signatures}

    def first(self, pages: int) -> PageIndex:
        return PageIndex(self.ids[:pages], self.layers[:pages], self.signatures[:pages])

    def followed_by(self, other: PageIndex) -> PageIndex:
        """The index with further pages behind these."""
        return PageIndex(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.layers, other.layers]),
            np.concatenate([self.signatures, other.signatures]),
        )

    def with_rows(self, ids: npt.NDArray[np.uint8]) -> PageIndex:
        """The index with pages of rows behind these; ``ids`` is uint8 [row pages, 32]."""
        return self.followed_by(PageIndex(ids, np.zeros(len(ids), np.int32), np.zeros(len(ids), np.uint64)))

    @staticmethod
    def header(pages: int) -> Header:
        """What the file's header says of so many pages."""
        return {
            "ids": TensorInfo("uint8", (pages, 32)),
            "layers": TensorInfo("int32", (pages,)),
            "signatures": TensorInfo("uint64", (pages,)),
        }

    @classmethod
    def parse(cls, arrays: dict[str, npt.NDArray[np.generic]], layers: int) -> PageIndex:
        """Validate what a file with the right header held; ``layers`` is the number of model layers."""
        of_page = arrays["layers"].astype(np.int64)
        if len(of_page) and not 0 <= of_page.min() <= of_page.max() < layers:
            raise BundleFormatError(FILE, "layers", f"from 0 to at most {layers - 1}", "other values")
        return cls(**arrays)  # type: ignore[arg-type]

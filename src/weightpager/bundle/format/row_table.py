"""Tables that are only looked up, such as an embedding's, as rows in pages: how a row is stored, and where it lies.

A stored row is its numbers, int8 [columns], and then its scale, a bfloat16: a value is its number times the scale. Rows
follow each other without gaps in the order of their *places*, the most used first, and pages cut that stream: a row
may go on in the next page, and a page holds rows of one table only. So no width of a row wastes a page's bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from weightpager.bundle.files.strict import Strict
from weightpager.bundle.files.tensor_file import Header, TensorInfo
from weightpager.errors import BundleFormatError
from weightpager.page_dtype import encode

FILE = "row-places.safetensors"
"""Where each row of each table lies."""

SCALE_BYTES = 2
CURVE = 64
"""A use curve has a point for every 1/64 of the rows."""

_PIECE = 4096  # rows that are encoded at once

Share = Annotated[float, Meta(ge=0, le=1)]


class RowTableEntry(Strict, frozen=True, kw_only=True):
    """What the manifest says of a table whose rows come on demand.

    Attributes:
        lookups: number of rows that a text looks up, on average over the compiled tasks' texts; 0 if unknown.
        uses: task → share of its look-ups that the first i/64 of the places serve, for i from 0 to 64.
    """

    name: Annotated[str, Meta(min_length=1, max_length=512)]
    rows: Annotated[int, Meta(ge=1, lt=2**31)]
    columns: Annotated[int, Meta(ge=1, le=2**24)]
    lookups: Annotated[float, Meta(ge=0, le=2**31)]
    uses: dict[str, Annotated[list[Share], Meta(min_length=CURVE + 1, max_length=CURVE + 1)]]

    def __post_init__(self) -> None:
        for task, curve in self.uses.items():
            if any(later < earlier for earlier, later in pairwise(curve)):
                raise ValueError(f"uses that rise, got others for {task!r:.80}")

    @property
    def row_bytes(self) -> int:
        return self.columns + SCALE_BYTES

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes

    def pages(self, page_bytes: int) -> int:
        return -(-self.bytes // page_bytes)

    def places_dtype(self) -> npt.DTypeLike:
        return np.uint16 if self.rows <= 2**16 else np.uint32

    def curve(self) -> npt.NDArray[np.float64]:
        """The mean of the tasks' use curves, [65]; an even one where none is known."""
        if not self.uses:
            return np.linspace(0, 1, CURVE + 1)
        return np.asarray(np.mean(list(self.uses.values()), axis=0))

    def served(self, shares: float | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Share of look-ups that are served, on average, by such shares of the rows: the most used ones."""
        return np.asarray(np.interp(shares, np.linspace(0, 1, CURVE + 1), self.curve()))


@dataclass(frozen=True)
class RowTable:
    """A table of an open bundle whose rows come on demand.

    Attributes:
        first: number of its first page, counted from the first page of rows on.
        places: the place of each row, [rows].
    """

    entry: RowTableEntry
    first: int
    places: npt.NDArray[np.unsignedinteger[Any]]


def encode_rows(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Rows ``[n, columns]`` as they are stored, ``[n, columns + 2]``. A row is an int8 block of one row."""
    n, columns = values.shape
    padded = 1 << max(1, (columns - 1).bit_length())  # columns of a block, as scales are searched for
    block = np.pad(values, ((0, 0), (0, padded - columns)))[:, None, :]
    stored = encode(np.ascontiguousarray(block, np.float32), "int8")
    return np.concatenate([stored[:, :columns], stored[:, -SCALE_BYTES:]], axis=1).reshape(n, columns + SCALE_BYTES)


def decode_rows(stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The values ``[n, columns]`` of stored rows ``[n, columns + 2]``; exact."""
    numbers = stored[:, :-SCALE_BYTES].view(np.int8).astype(np.float32)
    bits = np.ascontiguousarray(stored[:, -SCALE_BYTES:]).view("<u2").astype(np.uint32) << np.uint32(16)
    return np.asarray(numbers * bits.view(np.float32))


def table_pages(
    values: npt.NDArray[np.float32], order: npt.NDArray[np.integer[Any]], page_bytes: int
) -> Iterator[bytes]:
    """A table's pages: of values ``[rows, columns]``, by row, and the row that lies in each place."""
    pieces = (order[start : start + _PIECE] for start in range(0, len(order), _PIECE))
    return cut((encode_rows(values[rows]).tobytes() for rows in pieces), page_bytes)


def cut(stream: Iterable[bytes], page_bytes: int) -> Iterator[bytes]:
    """A table's stream of rows, given in pieces, as pages; the last one is filled up with zeros."""
    rest = b""
    for piece in stream:
        rest += piece
        whole = len(rest) // page_bytes * page_bytes
        yield from (rest[start : start + page_bytes] for start in range(0, whole, page_bytes))
        rest = rest[whole:]
    if rest:
        yield rest.ljust(page_bytes, b"\0")


def header(entries: Iterable[RowTableEntry]) -> Header:
    """What the header of the file of places says."""
    return {entry.name: TensorInfo(np.dtype(entry.places_dtype()).name, (entry.rows,)) for entry in entries}


def parse(
    arrays: Mapping[str, npt.NDArray[Any]], entries: Sequence[RowTableEntry], page_bytes: int
) -> dict[str, RowTable]:
    """The tables by name, from a file with the right header."""
    tables, first = {}, 0
    for entry in entries:
        places = arrays[entry.name]
        seen = np.zeros(entry.rows, bool)
        seen[places[places < entry.rows]] = True
        if not seen.all():
            raise BundleFormatError(FILE, entry.name, f"each of 0 to {entry.rows - 1} once", "other places")
        tables[entry.name] = RowTable(entry, first, places)
        first += entry.pages(page_bytes)
    return tables

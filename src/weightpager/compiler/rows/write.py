"""Tables as pages of rows in a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
from torch import Tensor

from weightpager.bundle import BundleWriter
from weightpager.bundle.format.page_file import file_counts, row_file_name
from weightpager.bundle.format.row_table import RowTableEntry, table_pages
from weightpager.compiler.rows.row_uses import RowUses


@dataclass(frozen=True)
class WrittenRows:
    """What the manifest and the page index say of the rows that were written.

    Attributes:
        entries: the manifest's entry of each table.
        files: number of pages in each page file.
        ids: the pages' ids, uint8 [pages, 32].
    """

    entries: list[RowTableEntry]
    files: list[int]
    ids: npt.NDArray[np.uint8]


def write_rows(
    writer: BundleWriter, uses: Mapping[str, RowUses], values: Mapping[str, Tensor], page_bytes: int
) -> WrittenRows:
    """Write tables and where their rows lie.

    Args:
        writer: of the bundle.
        uses: of each table's rows, by name.
        values: of them, [rows, columns].
        page_bytes: bytes of a page.

    Raises:
        CompileError: the storage refused it.
    """
    entries = [uses[name].entry(name) for name in values]
    pages = (
        table_pages(table.detach().float().numpy(), uses[name].order, page_bytes) for name, table in values.items()
    )
    count = sum(entry.pages(page_bytes) for entry in entries)
    ids, files = write_row_pages(writer, chain.from_iterable(pages), count, page_bytes)
    writer.put_row_places({entry.name: uses[entry.name].places.astype(entry.places_dtype()) for entry in entries})
    return WrittenRows(entries, files, ids)


def write_row_pages(
    writer: BundleWriter, pages: Iterator[bytes], count: int, page_bytes: int
) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Write so many pages of rows; their ids, uint8 [count, 32], and how many are in each file.

    Raises:
        CompileError: the storage refused it.
    """
    ids: list[bytes] = []
    files = file_counts(count, page_bytes)
    for number, some in enumerate(files):
        ids += writer.put_pages(row_file_name(number), pages, some, page_bytes)
    return np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32), files

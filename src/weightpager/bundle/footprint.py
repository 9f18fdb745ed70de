"""Memory that a bundle takes whatever is in the arena."""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from weightpager.bundle.files.tensor_file import read_header
from weightpager.bundle.format.low_rank import LEAST_BLOCK
from weightpager.bundle.format.names import RESIDENT, private_file
from weightpager.bundle.format.row_table import RowTableEntry
from weightpager.bundle.reader import Bundle
from weightpager.page_dtype import block_bytes

_SPARE_PAGES = 256  # page numbers beyond twice the bundle's pages, for tasks that are added while an engine runs
_NUMBER_BYTES = 34  # bookkeeping for each page number, beside a byte for each task: slots, users and time of arrival
_PAGE_BYTES = 44  # bookkeeping for each page: its number, and a slot in the list of free ones

_INDEX_BYTES = 44  # of a page's id, layer and signature
_EXPANDED_BYTES = 8  # of a block that a task keeps, in its expanded tables

_LEAST_ROWS = 32
"""One row of so many is in memory whatever the budget; on texts of the demo's tasks these serve about two look-ups of
three."""

_LEAST_PICTURES, _MOST_PICTURES = 2, 16
"""Pictures whose features have room whatever the budget, as many prompts compare two, and those in a large one."""

_ROW_BOOKKEEPING = 9  # bytes for each row in memory: which it is, when it was used last, and whether it may go
_SLOT_BYTES = 4  # for each row of a table, where in memory it is


@dataclass(frozen=True)
class Footprint:
    """Bytes that are always in memory.

    Attributes:
        resident: parameters that tasks share.
        private: parameters of all tasks' own.
        placement: block tables as the bundle has them, page index and page table, where rows of tables are, and blocks
            of whole weights.
        largest_table: the expanded block tables of the task that has the largest; a task in use has its own.
        all_tables: those of all tasks.
        rows: rows of tables: the least of them, or as many as were asked for.
        features: what the picture tower made of a few pictures, kept for further questions about them.
    """

    resident: int
    private: int
    placement: int
    largest_table: int = 0
    all_tables: int = 0
    rows: int = 0
    features: int = 0

    @property
    def tables(self) -> int:
        """What tables take while one task is in use."""
        return self.placement + self.largest_table

    @property
    def total(self) -> int:
        """What is in memory while one task is in use."""
        return self.resident + self.private + self.tables + self.rows + self.features

    @property
    def largest(self) -> int:
        """What may be in memory: with the expanded tables of all tasks."""
        return self.total - self.largest_table + self.all_tables


def page_capacity(bundle: Bundle, pages: int | None = None) -> int:
    """How many page numbers an engine has over so many pages, or the bundle's own.

    They are at most as many as the locations in block tables can address, those of low-rank parts included.
    """
    most = np.iinfo(np.int32).max // max(bundle.manifest.blocks_per_page, bundle.page_bytes // LEAST_BLOCK)
    return int(min(2 * (len(bundle.pages) if pages is None else pages) + _SPARE_PAGES, most))


def least_rows(entry: RowTableEntry) -> int:
    """Rows of a table that are in memory whatever the budget."""
    return -(-entry.rows // _LEAST_ROWS)


def row_memory(entry: RowTableEntry) -> int:
    return entry.row_bytes + _ROW_BOOKKEEPING


def feature_bytes(bundle: Bundle) -> int:
    """Memory of one picture's features; 0 of a bundle whose tasks read no pictures among their words."""
    return 0 if bundle.pictures is None else bundle.pictures.tokens * bundle.pictures.width * 4


def most_features(bundle: Bundle) -> int:
    """Memory of all features that are worth keeping."""
    return _MOST_PICTURES * feature_bytes(bundle)


def whole_rows(bundle: Bundle) -> int:
    return sum(entry.rows * row_memory(entry) for entry in bundle.manifest.row_tables)


def whole_pages(size: int) -> int:
    """Bytes of the machine's pages that so many bytes take."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def expanded_bytes(bundle: Bundle, tasks: Collection[str]) -> int:
    """Memory of tasks' expanded block tables. Tasks with the same blocks have those of paged weights in common."""
    placement = bundle.placement
    blocks = {placement.used[number].tobytes(): number for number in (bundle.task_numbers[task] for task in tasks)}
    layouts = (bundle.low_rank(task) for task in tasks)
    low_rank = sum(whole_pages(4 * layout.entries) for layout in layouts if layout is not None)
    return low_rank + sum(whole_pages(placement.table_bytes(number)) for number in blocks.values())


def footprint(bundle: Bundle, dtype: str = "auto", rows: int | None = None) -> Footprint:
    """What an engine over this bundle holds beside its arena.

    ``dtype`` and ``rows``, bytes for rows of tables, are those of the engine's configuration; None where the budget
    decides.
    """
    manifest, files = bundle.manifest, [RESIDENT, *map(private_file, bundle.tasks)]
    parameters = [_parameter_bytes(bundle, file, dtype) for file in files]
    row_places = sum(table.places.nbytes + table.entry.rows * _SLOT_BYTES for table in bundle.row_tables.values())
    whole = (weight for file in files for weight in bundle.whole_weights(file))
    whole_places = sum(weight.memory(manifest.block_shape) - weight.bytes(manifest.block_shape) for weight in whole)
    least = sum(least_rows(entry) * row_memory(entry) for entry in manifest.row_tables)
    return Footprint(
        resident=parameters[0],
        private=sum(parameters[1:]),
        placement=_page_tables(bundle, len(bundle.pages), bundle.placement.locations) + row_places + whole_places,
        largest_table=max(expanded_bytes(bundle, [task]) for task in bundle.tasks),
        all_tables=expanded_bytes(bundle, bundle.tasks),
        rows=least if rows is None else min(rows, whole_rows(bundle)),
        features=_LEAST_PICTURES * feature_bytes(bundle),
    )


def budget_of_shared(bundle: Bundle, paged_bytes: int, dtype: str) -> int:
    """Bytes that a bundle of the same model would need if all its tasks had the same blocks, in pages as large.

    These blocks have so many bytes in a `PageDtype`. Up to a page a layer too many, as layers don't fill their last
    pages.
    """
    always, placement = footprint(bundle), bundle.placement
    blocks = paged_bytes // block_bytes(bundle.manifest.block_shape, dtype)
    pages = -(-paged_bytes // bundle.page_bytes) + bundle.manifest.layers
    more_places = _page_tables(bundle, pages, blocks) - _page_tables(bundle, len(bundle.pages), placement.locations)
    more_tables = _EXPANDED_BYTES * (blocks - max(placement.kept(task) for task in range(len(bundle.tasks))))
    return always.total + more_places + more_tables + pages * bundle.page_bytes


def _page_tables(bundle: Bundle, pages: int, places: int) -> int:
    numbers = places * bundle.placement.numbers.dtype.itemsize + len(bundle.tasks) * -(-places // 8)
    index = (pages + len(bundle.row_ids)) * _INDEX_BYTES
    return numbers + index + page_capacity(bundle, pages) * (_NUMBER_BYTES + len(bundle.tasks)) + pages * _PAGE_BYTES


def _parameter_bytes(bundle: Bundle, file: str, dtype: str) -> int:
    count = bundle.entry(file).bytes
    if dtype == "auto":
        return count
    header = read_header(bundle.path, file, bundle.entry(file))
    return count - 2 * sum(math.prod(stated.shape) for stated in header.values() if stated.dtype == "float32")

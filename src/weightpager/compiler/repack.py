"""Packing a bundle's blocks again: what is needed together lies together again after tasks have come or gone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from weightpager.bundle import Bundle, BundleWriter, PageIndex, writing
from weightpager.bundle.format import page_file
from weightpager.bundle.format.manifest import transitions_of
from weightpager.bundle.format.row_table import cut
from weightpager.bundle.low_rank_pages import LowRankPages
from weightpager.bundle.report.page_statistics import over_read, page_fill
from weightpager.bundle.task_subset import TaskSubset
from weightpager.compiler.packing.pack import Packing, StoredBlocks, pack
from weightpager.compiler.packing.rows import write_row_pages
from weightpager.compiler.packing.write import page_file_counts, write_page_files
from weightpager.errors import ConfigError
from weightpager.page_dtype import page_content
from weightpager.progress import StepProgress, silent
from weightpager.runtime.budget import usual_faults
from weightpager.store import BlockReader, StorageModel
from weightpager.store.block_reader import RowReader, read_stored_parts

PageSize = int | Literal["auto"] | None
"""Bytes of a page; ``auto`` takes the best size, None that of the bundle."""


@dataclass(frozen=True)
class PageUse:
    """How a bundle's pages are used.

    Attributes:
        fill: share of these bytes that some task uses.
        over_read: share of its pages' bytes that a task doesn't use, by task.
        task_bytes: bytes of a task's pages, by task.
    """

    page_bytes: int
    bytes: int
    fill: float
    over_read: dict[str, float]
    task_bytes: dict[str, int]

    @classmethod
    def of(cls, bundle: Bundle) -> PageUse:
        """How a bundle's pages are used."""
        size = bundle.page_bytes
        of_tasks = {task: len(bundle.pages_of(task)) * size for task in bundle.tasks}
        return cls(size, len(bundle.pages) * size, page_fill(bundle), over_read(bundle), of_tasks)


@dataclass(frozen=True)
class Repacked:
    """The bundle that a repacking has written, and the one that it came from."""

    before: PageUse
    after: PageUse

    @property
    def worse(self) -> tuple[str, ...]:
        """Tasks whose pages are more bytes than before."""
        before, after = self.before.task_bytes, self.after.task_bytes
        return tuple(task for task in after if after[task] > before[task])


def repack(
    path: str | Path,
    out: str | Path,
    *,
    without: Iterable[str] = (),
    page: PageSize = None,
    force: bool = False,
    progress: StepProgress = silent,
) -> Repacked:
    """Write a bundle again with all blocks packed anew. Outputs of its tasks don't change by a bit.

    Args:
        path: bundle directory.
        out: bundle directory to create, which may be ``path`` itself with ``force``.
        without: tasks that are left out, with all that only they need.
        page: bytes of a page.
        force: replace an existing bundle.
        progress: told (pages done, pages in all).

    Raises:
        BundleError, StoreError: the bundle can't be used, has no such task, or was replaced meanwhile.
        ConfigError: no task would be left, ``out`` may not be written, or the page is no power of two that holds a
            block.
        CompileError: the storage refused a write, or another command is writing there at this moment.
    """
    bundle = Bundle.open(path)
    subset = TaskSubset.without(bundle, without)
    _check_page(page, bundle)
    with writing(out, force=force, origin=bundle) as writer:
        _Repacking.of(subset, bundle.page_bytes if page is None else page).write(writer, progress)
    return Repacked(PageUse.of(bundle), PageUse.of(Bundle.open(out)))


def _check_page(page: PageSize, bundle: Bundle) -> None:
    least = max(page_file.ALIGNMENT, bundle.block_bytes)
    if isinstance(page, int) and not (least <= page <= 2**28 and page & (page - 1) == 0):
        raise ConfigError(f"page: expected a power of two from {least} bytes to 256MiB, found {page}")


@dataclass(frozen=True)
class _Versions:
    """Every version of every kept block of one paged weight.

    Attributes:
        stored: the versions.
        locations: int64 [stored], where they lie now.
    """

    stored: StoredBlocks
    locations: npt.NDArray[np.int64]

    @classmethod
    def of(cls, subset: TaskSubset) -> list[_Versions]:
        """The versions of every paged weight; tasks that share a location share a version."""
        bundle = subset.bundle
        users = subset.signatures(bundle.placement.users())
        versions = []
        for entry, (blocks, locations) in zip(bundle.manifest.weights, bundle.placement.by_weight(), strict=True):
            used = users[locations] != 0
            stored = StoredBlocks(entry.layer, blocks[used], users[locations[used]])
            versions.append(cls(stored, locations[used]))
        return versions

    def locate(self, blocks: npt.NDArray[np.int64], users: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Where the versions with these users of these blocks lie now."""
        kinds, ours = np.unique(self.stored.signatures, return_inverse=True)
        theirs = np.searchsorted(kinds, users)
        known = self.stored.blocks * len(kinds) + ours.reshape(-1)  # one number for each version
        order = np.argsort(known)
        at = order[np.searchsorted(known, blocks * len(kinds) + theirs, sorter=order)]
        return np.asarray(self.locations[at])


@dataclass(frozen=True)
class _Repacking:
    """Tasks, the versions of their blocks by paged weight, and where these will lie."""

    subset: TaskSubset
    versions: tuple[_Versions, ...]
    packing: Packing

    @classmethod
    def of(cls, subset: TaskSubset, page: int | Literal["auto"]) -> _Repacking:
        """Decide where each block goes."""
        bundle = subset.bundle
        versions = tuple(_Versions.of(subset))
        stored = [weight.stored for weight in versions]
        transitions = transitions_of(bundle.manifest).only(subset.names)
        size = None if page == "auto" else page
        faults = usual_faults(bundle.manifest.row_tables)
        packing = pack(stored, bundle.block_bytes, transitions.switch_rate(), StorageModel(), size, faults)
        return cls(subset, versions, packing)

    def write(self, writer: BundleWriter, progress: StepProgress) -> None:
        """Write all files of the new bundle."""
        files = page_file_counts(self.packing)
        reader = BlockReader(self.subset.bundle)
        try:
            ids = write_page_files(writer, self.packing, self._pages(reader, progress))
        finally:
            reader.close()
        row_ids, row_files = self._write_rows(writer)
        bundle, names = self.subset.bundle, self.subset.names
        manifest = self.subset.manifest(page_bytes=self.packing.page_bytes, page_files=files)
        stored = {name: read_stored_parts(bundle, name) for name in names if bundle.low_rank(name) is not None}
        low_rank = LowRankPages.move(writer, manifest, stored)
        index = PageIndex(ids, self.packing.layers, self.packing.signatures).followed_by(low_rank.index)
        writer.put_index(index.with_rows(row_ids))
        placed = self.packing.placement(bundle.placement.numbers, len(names))
        writer.put_placement(placed.followed_by_empty(low_rank.index.layers))
        self.subset.carry_over(writer)
        self.subset.finish(writer, replace(low_rank.manifest, row_files=row_files))

    def _write_rows(self, writer: BundleWriter) -> tuple[npt.NDArray[np.uint8], list[int]]:
        """Cut the tables' rows into pages of the new size; the pages' ids, and how many each file has."""
        bundle, size = self.subset.bundle, self.packing.page_bytes
        count = sum(entry.pages(size) for entry in bundle.manifest.row_tables)
        with RowReader(bundle) as reader:
            pages = (page for name in bundle.row_tables for page in cut(reader.stream(name), size))
            return write_row_pages(writer, pages, count, size)

    def _pages(self, reader: BlockReader, progress: StepProgress) -> Iterator[bytes]:
        """The bytes of every page in order; the blocks of one stretch of layers in memory at a time."""
        packing, places = self.packing, self.packing.blocks_per_page
        for pages in packing.stretches():
            span = slice(pages.start * places, pages.stop * places)
            filled = packing.weights[span] >= 0
            flat = np.zeros((len(filled), self.subset.bundle.block_bytes), np.uint8)
            flat[filled] = reader.read(self._locations(span)[filled])
            manifest = self.subset.bundle.manifest
            for done, page in enumerate(flat.reshape(-1, places, flat.shape[1]), pages.start + 1):
                yield page_content(page, manifest.block_shape, manifest.dtype, packing.page_bytes)
                progress(done, len(packing.layers))

    def _locations(self, span: slice) -> npt.NDArray[np.int64]:
        """Where the blocks that will lie in these places lie now; −1 for an empty place."""
        weights, blocks, users = self.packing.weights[span], self.packing.blocks[span], self.packing.users[span]
        locations = np.full(len(weights), -1, np.int64)
        for number in np.unique(weights[weights >= 0]):
            here = weights == number
            locations[here] = self.versions[number].locate(blocks[here], users[here])
        return locations

"""Garbage collection: pages that no task needs leave a bundle; every other page stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from weightpager.bundle.format import page_file
from weightpager.bundle.format.page_file import PageIndex
from weightpager.bundle.reader import Bundle
from weightpager.bundle.task_subset import TaskSubset
from weightpager.bundle.writer import BundleWriter, storage_errors, writing
from weightpager.errors import PageCorruptError
from weightpager.progress import StepProgress, silent


@dataclass(frozen=True)
class Collected:
    """What a collection removed, and the pages that are left."""

    tasks: tuple[str, ...]
    pages: int
    bytes: int
    pages_left: int


def collect(
    path: str | Path,
    drop: Iterable[str] = (),
    progress: StepProgress = silent,
    *,
    out: str | Path | None = None,
    force: bool = False,
) -> Collected:
    """Drop tasks, and every page that no other task needs. The bundle is exchanged as a whole, or stays as it was.

    Outputs of the other tasks don't change, nor do their pages' ids. A page stays whole as long as one of its blocks
    is needed: `repack` makes it smaller. The exchange is one step where the file system can, as `new_directory` says.

    Args:
        path: bundle directory.
        drop: tasks that leave.
        progress: told (pages done, pages in all).
        out: bundle directory to create, while the bundle stays; None to exchange the bundle.
        force: replace an existing bundle at ``out``.

    Raises:
        BundleError: the bundle is damaged, has no such task, or was replaced meanwhile.
        ConfigError: no task would be left, or ``out`` can't be written.
        CompileError: the storage refused a write, or another command is writing there at this moment.
    """
    bundle = Bundle.open(path)
    subset = TaskSubset.without(bundle, drop)
    signatures = subset.signatures(bundle.pages.signatures)
    used = signatures != 0
    gone = tuple(name for name in bundle.tasks if name not in subset.names)
    if out is not None or gone or not used.all():
        target, replaces = (path, True) if out is None else (out, force)
        with writing(target, force=replaces, origin=bundle) as writer:
            _write(writer, subset, signatures, used, progress)
    pages = int((~used).sum())
    return Collected(gone, pages, pages * bundle.page_bytes, int(used.sum()))


def _write(
    writer: BundleWriter,
    subset: TaskSubset,
    signatures: npt.NDArray[np.uint64],
    used: npt.NDArray[np.bool_],
    progress: StepProgress,
) -> None:
    bundle = subset.bundle
    counts = _write_pages(writer, bundle, used, progress)
    index = PageIndex(bundle.pages.ids[used], bundle.pages.layers[used], signatures[used])
    writer.put_index(index.with_rows(bundle.row_ids))
    writer.put_placement(bundle.placement.only(used, subset.numbers))
    subset.carry_over(writer)
    subset.carry_over_rows(writer)
    subset.finish(writer, subset.manifest(page_bytes=bundle.page_bytes, page_files=counts))


def _write_pages(
    writer: BundleWriter, bundle: Bundle, used: npt.NDArray[np.bool_], progress: StepProgress
) -> list[int]:
    """Write the page files without unused pages, leave out empty files, check what is written; pages of each file."""
    counts: list[int] = []
    for name, first, pages in islice(bundle.manifest.page_ranges(), len(bundle.manifest.page_files)):
        staying = first + np.flatnonzero(used[first : first + pages])
        if len(staying) == pages > 0:
            writer.link(page_file.file_name(len(counts)), bundle.path / name)
        elif len(staying):
            content = _pages(bundle, name, pages, first, staying.tolist())
            ids = writer.put_pages(page_file.file_name(len(counts)), content, len(staying), bundle.page_bytes)
            for page, found in zip(staying.tolist(), ids, strict=True):
                if found != bundle.pages.ids[page].tobytes():
                    raise PageCorruptError(page, name)
        if len(staying):
            counts.append(len(staying))
        progress(first + pages, len(used))
    return counts


def _pages(bundle: Bundle, name: str, pages: int, first: int, wanted: Sequence[int]) -> Iterator[bytes]:
    """The wanted pages of a file that begins with page ``first``, unchecked."""
    size = bundle.page_bytes
    start = page_file.check(bundle.path / name, pages, size)
    with storage_errors(), (bundle.path / name).open("rb") as file:
        for page in wanted:
            file.seek(start + (page - first) * size)
            yield file.read(size)

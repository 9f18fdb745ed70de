"""Mending a bundle from another copy, page by page: nothing that is well is written to.

Whatever stops it, even kill -9, leaves each page and file as damaged as it was, or right; running it again goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from weightpager.bundle.files.entry import FileEntry, check_file
from weightpager.bundle.files.lock import locked
from weightpager.bundle.files.new_directory import sync
from weightpager.bundle.files.new_file import beside, new_file
from weightpager.bundle.files.permissions import imitate
from weightpager.bundle.format.manifest import Manifest
from weightpager.bundle.format.names import MANIFEST
from weightpager.bundle.reader import read_manifest, read_page_index
from weightpager.bundle.repair.damaged_page_file import DamagedPageFile
from weightpager.bundle.repair.donor import Donor
from weightpager.errors import BundleError, BundleFormatError, ConfigError
from weightpager.machine.paths import has_directory
from weightpager.progress import StepProgress, silent


@dataclass(frozen=True)
class Repair:
    """What was looked at, what was mended, and what could not be.

    Attributes:
        files: number of files that the manifest lists.
        pages: number of pages in the bundle.
        mended_files: names of the files that were mended.
        mended_frames: page files, by name, whose size or header was wrong; their pages are another matter.
        mended_pages: numbers of the pages that were mended.
        problems: what is left, a line for each: what was wrong, and why it could not be mended.
    """

    files: int
    pages: int
    mended_files: tuple[str, ...]
    mended_frames: tuple[str, ...]
    mended_pages: tuple[int, ...]
    problems: tuple[str, ...]


def repair(path: str | Path, source: str | Path, progress: StepProgress = silent) -> Repair:
    """Mend what is damaged in a bundle with what another one has.

    Only hashes decide. A page is taken from wherever ``source`` has the same id; a file from the one of the same name,
    if that has the hash in the manifest. Damage that no hash shows is found by `verify`, not here.

    Args:
        path: bundle directory. An engine that has it open goes on undisturbed.
        source: another bundle that has some of the same pages and files; it may be damaged, elsewhere.
        progress: told (pages done, pages in all).

    Raises:
        ConfigError: both are the same directory.
        BundleError: nothing can be mended: there is no such bundle, its manifest is damaged, somebody else is mending
            it, or ``source`` is no directory.
    """
    root, donor = Path(path), Path(source)
    with _held(root) as held:
        _check_donor(root, donor)
        mending = _Mending(held, _manifest(held, root), Donor(donor), progress)
        mending.mend_files()
        mending.mend_pages()
        return mending.result()


@contextmanager
def _held(root: Path) -> Iterator[Path]:
    """Lock the directory that is at a path now, and yield a path that keeps leading to it.

    Another bundle may take this one's place meanwhile, and its pages must not be overwritten with ours. The yielded
    path goes through a descriptor of the directory that was opened, which only ``/proc`` can name.

    Raises:
        BundleError: there is no such directory, another process is mending it, or ``/proc`` isn't mounted.
    """
    taken = BundleError(f"{root}: expected to be alone, found another process mending it; wait for it")
    # No lock is required: two who mend write the same bytes.
    with locked(root, os.O_RDONLY | os.O_DIRECTORY, taken, partial(_absence, root), required=False) as descriptor:
        held = Path(f"/proc/self/fd/{descriptor}")
        if not has_directory(held):
            raise BundleError(
                f"{root}: expected /proc, through which a bundle is held while it is mended, found none; mount it "
                "('mount -t proc proc /proc'), or mend the bundle from outside the sandbox"
            )
        yield held


@contextmanager
def _absence(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(f"{root}: expected a bundle directory to mend, found none: {error.strerror}") from error


def _check_donor(root: Path, donor: Path) -> None:
    if not has_directory(donor):
        raise BundleError(f"{donor}: expected a bundle directory to mend from, found none; name another copy of {root}")
    if donor.samefile(root):
        raise ConfigError(f"{donor}: expected another bundle to mend from, found {root} itself; name another copy")


def _manifest(held: Path, root: Path) -> Manifest:
    try:
        return read_manifest(held)
    except BundleError as error:
        raise BundleError(
            f"{root}: {error}. Only the manifest says what belongs into a bundle, so this one can't be mended "
            "page by page: copy the whole bundle again"
        ) from error


class _Mending:
    """One bundle being mended."""

    def __init__(self, root: Path, manifest: Manifest, donor: Donor, progress: StepProgress) -> None:
        self._root = root
        self._manifest = manifest
        self._donor = donor
        self._progress = progress
        self._files: list[str] = []
        self._frames: list[str] = []
        self._pages: list[int] = []
        self._problems: list[str] = []
        self._unfound = False

    def result(self) -> Repair:
        """What has happened so far."""
        files, pages = len(self._manifest.files), self._manifest.pages + self._manifest.row_pages
        return Repair(files, pages, tuple(self._files), tuple(self._frames), tuple(self._pages), tuple(self._problems))

    def mend_files(self) -> None:
        """Replace every damaged file but the page files."""
        for name, entry in self._manifest.files.items():
            try:
                check_file(self._root, name, entry)
            except BundleError as damage:
                self._mend_file(name, entry, damage)

    def mend_pages(self) -> None:
        """Mend every page file; this needs an undamaged page index."""
        try:
            ids = read_page_index(self._root, self._manifest).ids
        except BundleError as error:
            self._problems.append(f"{error}; without it no page can be told from a damaged one, and none was mended")
            return
        for name, first, count in self._manifest.page_ranges():
            try:
                self._mend_page_file(name, ids[first : first + count], first)
            except OSError as error:
                self._problems.append(f"{name}: cannot be mended: {error.strerror or error}")
            except BundleError as error:
                self._problems.append(str(error))
        if self._unfound and self._donor.problem is not None:
            self._problems.append(f"{self._donor.root}: its pages cannot be found by id: {self._donor.problem}")

    def _mend_file(self, name: str, entry: FileEntry, damage: BundleError) -> None:
        try:
            _replace(self._root, name, lambda file: self._donor.copy(name, entry, file))
        except BundleError as error:
            self._problems.append(f"{damage}; not mended: {self._donor.root}: {error}")
        except OSError as error:
            self._problems.append(f"{damage}; cannot be written: {error.strerror or error}")
        else:
            self._files.append(name)

    def _mend_page_file(self, name: str, ids: npt.NDArray[np.uint8], first: int) -> None:
        file = DamagedPageFile(_inside(self._root, name), ids, self._manifest.page_bytes)
        missing = not file.path.exists()
        if file.mend_frame():
            self._frames.append(name)
        damaged = [place for place in range(len(ids)) if self._is_damaged(file, place, first)]
        problems = file.mend(damaged, self._donor) if damaged else {}
        if missing:  # not before: who may only read a bundle's files couldn't fill it
            imitate(file.path, (self._root / MANIFEST).stat())
        self._pages += [first + place for place in damaged if place not in problems]
        for place, problem in problems.items():
            self._problems.append(f"{name}: page {first + place} (place {place}): damaged; not mended: {problem}")
        self._unfound = self._unfound or bool(problems)

    def _is_damaged(self, file: DamagedPageFile, place: int, first: int) -> bool:
        damaged = file.is_damaged(place)
        self._progress(first + place + 1, self._manifest.pages + self._manifest.row_pages)
        return damaged


def _inside(root: Path, name: str) -> Path:
    """Where a file of the bundle is written.

    Raises:
        BundleFormatError: a link leads elsewhere, where nothing may be written.
    """
    path = root / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise BundleFormatError(name, "path", "a file inside the bundle", "a link that leads out of it; remove it")
    return path


def _replace(root: Path, name: str, write: Callable[[IO[bytes]], object]) -> None:
    """Put a file in the place of one that is damaged or missing, whole or not at all."""
    path = _inside(root, name)
    _make_folder(root, path.parent)
    with new_file(path) as file:
        imitate(beside(path), (root / MANIFEST).stat())
        write(file)
    for folder in Path(name).parents:
        sync(root / folder)  # it may be new


def _make_folder(root: Path, folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(root, folder.parent)
        folder.mkdir()
        imitate(folder, root.stat())

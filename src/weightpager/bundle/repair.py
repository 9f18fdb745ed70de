"""A damaged bundle is mended page by page, from copies of it and from other bundles.

Nothing that is well is written to. Whatever stops it, even kill -9, leaves each page and file as damaged as it was, or
right; running it again goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from weightpager.bundle.files.entry import FileEntry, check_file, open_entry
from weightpager.bundle.files.new_directory import imitate, locked, sync
from weightpager.bundle.files.new_file import beside, new_file
from weightpager.bundle.files.regular_file import open_regular
from weightpager.bundle.format import page_file
from weightpager.bundle.format.manifest import Manifest
from weightpager.bundle.format.names import MANIFEST
from weightpager.bundle.reader import read_manifest, read_page_index
from weightpager.errors import BundleError, BundleFormatError, ConfigError
from weightpager.machine.paths import has_directory
from weightpager.progress import StepProgress, silent

_PIECE = 1 << 20


class Donor:
    """Another bundle, which may be damaged too: nothing from it counts before its hash has been compared.

    Pages are found by id, whatever their number is there. A donor whose manifest or page index is damaged may still be
    a copy of the damaged bundle, so that a page is also looked for where that bundle has it.

    Attributes:
        problem: why its pages can't be found by id; None if they can.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._places: dict[bytes, list[tuple[str, int]]] = {}  # id → (page file, offset)
        self.problem: BundleError | None = None
        try:
            self._list_pages()
        except BundleError as error:
            self.problem = error

    def page(self, digest: bytes, size: int, *others: tuple[str, int]) -> bytes:
        """The page of this id, its bytes checked.

        It is looked for where the donor's own index has it, and in other places: page files and offsets. A
        `BundleError` says that there is none that is whole.
        """
        listed = self._places.get(digest, [])
        for place in dict.fromkeys([*listed, *others]):
            content = self._read(*place, size)
            if blake3(content).digest() == digest:
                return content
        if listed:
            raise BundleError(f"{self.root} has it in {listed[0][0]}, damaged or unreadable too")
        nowhere = "has no page of this id" if self.problem is None else "does not have it in the same place"
        raise BundleError(f"{self.root} {nowhere}")

    def copy(self, name: str, entry: FileEntry, target: IO[bytes]) -> None:
        """Write the file ``name`` to ``target``. The content is known to be right only once this has returned."""
        digest = blake3()
        for piece in self._pieces(name, entry):
            target.write(piece)
            digest.update(piece)
        if digest.hexdigest() != entry.blake3:
            raise BundleFormatError(name, "BLAKE3", entry.blake3, digest.hexdigest())

    def _pieces(self, name: str, entry: FileEntry) -> Iterator[bytes]:
        with open_entry(self.root, name, entry) as file:
            while piece := file.read(_PIECE):
                yield piece

    def _read(self, name: str, offset: int, size: int) -> bytes:
        """A page's bytes; fewer where they can't be read."""
        try:
            with open_regular(self.root / name) as file:
                file.seek(offset)
                return file.read(size)
        except OSError:
            return b""

    def _list_pages(self) -> None:
        manifest = read_manifest(self.root)
        pages = read_page_index(self.root, manifest)
        for name, first, count in manifest.page_ranges():
            start = len(page_file.header(count, manifest.page_bytes))
            for place, digest in enumerate(pages.ids[first : first + count]):
                self._places.setdefault(digest.tobytes(), []).append((name, start + place * manifest.page_bytes))


@dataclass(frozen=True)
class DamagedPageFile:
    """A page file, where it is or should be, whose pages may be damaged or missing; ``ids`` is uint8 [pages, 32]."""

    path: Path
    ids: npt.NDArray[np.uint8]
    page_bytes: int

    def mend_frame(self) -> bool:
        """Restore size and header where they are wrong; True if they were."""
        try:
            page_file.check(self.path, len(self.ids), self.page_bytes)
        except BundleError:
            page_file.frame(self.path, len(self.ids), self.page_bytes)
            sync(self.path.parent)
            return True
        return False

    def is_damaged(self, place: int) -> bool:
        """Whether a page's bytes don't match its id, or can't be read."""
        digest: bytes = self.ids[place].tobytes()
        try:
            with self.path.open("rb", buffering=0) as file:
                return page_file.PageHashes(file.fileno(), self.page_bytes).at(self._offset(place)) != digest
        except OSError:
            return True

    def mend(self, places: Sequence[int], donor: Donor) -> dict[int, str]:
        """Write these pages from the donor; by place, why those that are still damaged could not be written.

        After an `OSError` pages are as damaged as they were, or right.
        """
        problems = {}
        with self.path.open("r+b", buffering=0) as file:
            for place in places:
                try:
                    offset = self._offset(place)
                    content = donor.page(self.ids[place].tobytes(), self.page_bytes, (self.path.name, offset))
                    page_file.write_at(file.fileno(), content, offset)
                except BundleError as error:
                    problems[place] = str(error)
                except OSError as error:
                    problems[place] = f"cannot be written: {error.strerror or error}"
            # Once for all of them: a page that isn't on the disk yet is as damaged as it was.
            os.fsync(file.fileno())
        return problems

    def _offset(self, place: int) -> int:
        return self._start + place * self.page_bytes

    @cached_property
    def _start(self) -> int:
        return len(page_file.header(len(self.ids), self.page_bytes))


@dataclass(frozen=True)
class Repair:
    """What was looked at, what was mended, and what could not be.

    Attributes:
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
    def __init__(self, root: Path, manifest: Manifest, donor: Donor, progress: StepProgress) -> None:
        self._root, self._manifest, self._donor, self._progress = root, manifest, donor, progress
        self._files: list[str] = []
        self._frames: list[str] = []
        self._pages: list[int] = []
        self._problems: list[str] = []
        self._unfound = False

    def result(self) -> Repair:
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
        damaged = []
        for place in range(len(ids)):
            damaged += [place] if file.is_damaged(place) else []
            self._progress(first + place + 1, self._manifest.pages + self._manifest.row_pages)
        problems = file.mend(damaged, self._donor) if damaged else {}
        if missing:  # not before: who may only read a bundle's files couldn't fill it
            imitate(file.path, (self._root / MANIFEST).stat())
        self._pages += [first + place for place in damaged if place not in problems]
        for place, problem in problems.items():
            self._problems.append(f"{name}: page {first + place} (place {place}): damaged; not mended: {problem}")
        self._unfound = self._unfound or bool(problems)


def _inside(root: Path, name: str) -> Path:
    """Where a file of the bundle is written. Raises `BundleFormatError` if a link leads elsewhere."""
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

"""`Assembly`: a version's bundle as it is put together, in place, in a folder that nobody opens.

Whatever stops it, even ``kill -9`` or a full disk, what has been written is found again by its hashes.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from weightpager.bundle.files.entry import FileEntry, check_file, hash_file
from weightpager.bundle.files.regular_file import has_hole, open_regular
from weightpager.bundle.format import page_file
from weightpager.delivery.pulling.installed import BUNDLE, VERSION, write_errors
from weightpager.delivery.pulling.local_parts import LocalParts, whole_pages
from weightpager.delivery.pulling.plan import PullPlan
from weightpager.delivery.version_file import StoredPiece, VersionFile
from weightpager.errors import BundleError, DeliveryError
from weightpager.progress import StepProgress


class Assembly:
    """The files of one version: its folder, with the bundle and the version file, is installed in the end.

    Pages are numbered as in the bundle.
    """

    def __init__(self, folder: Path, version: VersionFile, ids: list[bytes]) -> None:
        self.folder = folder
        self.bundle = folder / BUNDLE
        self._version = version
        self._ids = ids
        self._page_files = dict(version.page_ranges())
        self._places: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for name, file in version.files.items():
            for start, piece in file.starts():
                if piece.blake3 is not None:
                    self._places[piece.blake3].append((name, start))

    def begin(self) -> None:
        """Make the folder and the files, at their sizes, and write the ids of pages."""
        with write_errors():
            self.bundle.mkdir(parents=True, exist_ok=True)
            (self.folder / VERSION).write_bytes(self._version.dump())
            for path in self.bundle.rglob("*"):
                name = path.relative_to(self.bundle).as_posix()
                if not path.is_dir() and name not in self._version.files and name not in self._page_files:
                    path.unlink()
            for name, file in self._version.files.items():
                path = self.bundle / name
                path.parent.mkdir(parents=True, exist_ok=True)
                _own(path)
                with path.open("ab") as opened:
                    opened.truncate(file.bytes)
            for name, pages in self._page_files.items():
                path = self.bundle / name
                try:
                    page_file.check(path, len(pages), self._version.page_bytes)
                except BundleError:
                    path.unlink(missing_ok=True)
                    page_file.frame(path, len(pages), self._version.page_bytes)
        for start, piece in self._version.files[page_file.FILE].starts():
            if piece.blake3 is None:
                self._put(page_file.FILE, start, b"".join(self._ids))

    def missing_pages(self, name: str) -> list[int]:
        """Numbers of a page file's pages that aren't what they should be."""
        pages = self._page_files[name]
        whole = whole_pages(self.bundle / name, [self._ids[page] for page in pages], self._version.page_bytes)
        return [page for page, is_whole in zip(pages, whole, strict=True) if not is_whole]

    def link_page_file(self, name: str, original: Path) -> bool:
        """Take over another version's page file, whose pages are right, as a hard link; False if the storage can't."""
        beside = self.folder / "link"
        try:
            beside.unlink(missing_ok=True)
            os.link(original, beside)
            beside.replace(self.bundle / name)
        except OSError:
            return False
        return True

    def page_writer(self) -> PageWriter:
        """A writer of pages to their places; to be closed."""
        return PageWriter(self.bundle, self._page_files, self._version.page_bytes)

    def copy_file(self, name: str, original: Path) -> bool:
        """Copy a file of another bundle; False if it was the wrong one."""
        wanted, beside = self._version.files[name], self.folder / "copy"
        with suppress(OSError):
            try:
                shutil.copyfile(original, beside)
                if hash_file(beside).blake3 == wanted.blake3:
                    beside.replace(self.bundle / name)
                    return True
            finally:
                beside.unlink(missing_ok=True)
        return False

    def is_whole(self, name: str) -> bool:
        """Whether a file is what it should be, and isn't mostly holes."""
        wanted = self._version.files[name]
        try:
            check_file(self.bundle, name, FileEntry(bytes=wanted.bytes, blake3=wanted.blake3))
        except BundleError:
            return False
        return True

    def missing_pieces(self, name: str) -> Iterator[StoredPiece]:
        """Pieces of a file that aren't what they should be. Where a hole is, zeros may be right, but aren't written."""
        for start, piece in self._version.files[name].starts():
            if piece.blake3 is not None and not _has_piece(self.bundle / name, start, piece):
                yield piece

    def put_piece(self, piece: StoredPiece, content: bytes) -> None:
        """Write a piece wherever it belongs."""
        for name, start in self._places[str(piece.blake3)]:
            self._put(name, start, content)

    def _put(self, name: str, start: int, content: bytes) -> None:
        with write_errors(), (self.bundle / name).open("r+b", buffering=0) as file:
            page_file.write_at(file.fileno(), content, start)


class PageWriter:
    """Page files that are opened when the first page is written. Several threads may write."""

    def __init__(self, bundle: Path, files: Mapping[str, range], page_bytes: int) -> None:
        self._bundle = bundle
        self._files = files
        self._starts = {name: len(page_file.header(len(pages), page_bytes)) for name, pages in files.items()}
        self._page_bytes = page_bytes
        self._open: dict[str, int] | None = {}
        self._lock = threading.Lock()  # a descriptor must not be closed, and be another file's, while somebody writes

    def put(self, page: int, content: bytes | bytearray) -> None:
        """Write a page to its place. Raises `DeliveryError` if the storage refused it, or nobody wants it any more."""
        name, pages = next(file for file in self._files.items() if page in file[1])
        offset = self._starts[name] + pages.index(page) * self._page_bytes
        with self._lock, write_errors():
            if self._open is None:
                raise DeliveryError("a page came too late")
            if name not in self._open:
                _own(self._bundle / name)
                self._open[name] = os.open(self._bundle / name, os.O_RDWR | os.O_CLOEXEC)
            page_file.write_at(self._open[name], content, offset)

    def close(self) -> None:
        with self._lock:
            for descriptor in (self._open or {}).values():
                os.close(descriptor)
            self._open = None


def _has_piece(path: Path, start: int, piece: StoredPiece) -> bool:
    try:
        with open_regular(path) as file:
            if has_hole(file.fileno(), start, start + piece.bytes):
                return False
            return blake3(os.pread(file.fileno(), piece.bytes, start)).hexdigest() == piece.blake3
    except OSError:
        return False


def _own(path: Path) -> None:
    """Make a file that is shared with another version this one's own before it is written to."""
    if path.exists() and path.stat().st_nlink > 1:
        copy = path.with_name(f"{path.name}.own")
        shutil.copyfile(path, copy)
        copy.replace(path)


@dataclass(frozen=True)
class Planner:
    """Compares what a version needs with what is here. It writes nothing.

    Of bundles on this device it reads no content: comparing hashes here and once more while they are copied would
    double a pull's time. What an earlier try has put together in the assembly is compared.
    """

    version: VersionFile
    ids: Sequence[bytes]
    local: LocalParts
    assembly: Assembly

    def plan(self, progress: StepProgress) -> PullPlan:
        """Find a source for each part that isn't in its place yet; told (pages looked for, pages in all)."""
        copy_files, pieces = self._files()
        link_files, pages = self._page_files(progress)
        return PullPlan(
            self.version,
            link_files,
            copy_files,
            copy_pages=[page for page in pages if self.local.lists_page(self.ids[page])],
            fetch_pages=[page for page in pages if not self.local.lists_page(self.ids[page])],
            copy_pieces=[piece for piece in pieces if self.local.lists_piece(str(piece.blake3))],
            fetch_pieces=[piece for piece in pieces if not self.local.lists_piece(str(piece.blake3))],
        )

    def _files(self) -> tuple[dict[str, Path], list[StoredPiece]]:
        """Files to copy, and the missing pieces of the others, each once."""
        copied: dict[str, Path] = {}
        missing: dict[str, StoredPiece] = {}
        for name, file in self.version.files.items():
            if self.assembly.is_whole(name):
                continue
            original = self.local.file(name, file)
            if original is not None:
                copied[name] = original
            else:
                missing |= {str(piece.blake3): piece for piece in self.assembly.missing_pieces(name)}
        return copied, list(missing.values())

    def _page_files(self, progress: StepProgress) -> tuple[dict[str, Path], list[int]]:
        """Page files to link, and the missing pages of the others."""
        linked: dict[str, Path] = {}
        missing: list[int] = []
        for name, pages in self.version.page_ranges():
            lacking = self.assembly.missing_pages(name)
            original = self.local.page_file([self.ids[page] for page in pages]) if lacking else None
            if original is not None:
                linked[name] = original
            else:
                missing += lacking
            progress(pages.stop, self.version.pages)
        return linked, missing

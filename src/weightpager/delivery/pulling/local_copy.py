"""`LocalCopy`: carries out what a plan needs no repository for. Each part is compared with its hash as it is copied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from weightpager.bundle.files.entry import FileEntry, check_file
from weightpager.delivery.pulling.local_parts import LocalParts, whole_pages
from weightpager.delivery.pulling.plan import PullPlan
from weightpager.delivery.version_file import StoredPiece, VersionFile
from weightpager.errors import BundleError
from weightpager.progress import StepProgress


class Pages(Protocol):
    """Takes pages of a version."""

    def put(self, page: int, content: bytes) -> None:
        """Take a page."""

    def close(self) -> None:
        """End; nothing is put afterwards."""


class Target(Protocol):
    """Takes parts of a version: an `Assembly`, or `Nowhere`."""

    def missing_pieces(self, name: str) -> Iterable[StoredPiece]:
        """Pieces of a file that it hasn't."""

    def copy_file(self, name: str, original: Path) -> bool:
        """Take a file, and return whether it was the right one."""

    def link_page_file(self, name: str, original: Path) -> bool:
        """Take a page file, whose pages are right, as a hard link, and return whether the storage could."""

    def put_piece(self, piece: StoredPiece, content: bytes) -> None:
        """Take a piece."""

    def page_writer(self) -> Pages:
        """What takes pages; to be closed."""


class Nowhere:
    """Compares with hashes and writes nothing, for a dry run. Implements `Target` and `Pages`."""

    def __init__(self, version: VersionFile) -> None:
        self._version = version

    def missing_pieces(self, name: str) -> list[StoredPiece]:
        return [piece for piece in self._version.files[name].pieces if piece.blake3 is not None]

    def copy_file(self, name: str, original: Path) -> bool:
        wanted = self._version.files[name]
        try:
            check_file(original.parent, original.name, FileEntry(bytes=wanted.bytes, blake3=wanted.blake3))
        except BundleError:
            return False
        return True

    def link_page_file(self, name: str, original: Path) -> bool:  # noqa: ARG002
        return True

    def put_piece(self, piece: StoredPiece, content: bytes) -> None: ...

    def page_writer(self) -> Nowhere:
        return self

    def put(self, page: int, content: bytes) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class LocalCopy:
    """Brings parts of a version from bundles on this device.

    Attributes:
        ids: ids of the version's pages.
        local: what the bundles have, which may be damaged, or be pruned meanwhile.
        target: the target that takes the parts.
    """

    ids: Sequence[bytes]
    local: LocalParts
    target: Target

    def carry_out(self, plan: PullPlan, progress: StepProgress) -> PullPlan:
        """Link and copy as planned.

        Args:
            plan: what to link and copy.
            progress: told (pages copied, pages to copy).

        Returns:
            The plan in which all that turned out damaged or gone is fetched.
        """
        pieces = [*plan.copy_pieces, *self._copy_files(plan)]
        pages = sorted([*plan.copy_pages, *self._link_page_files(plan)])
        return plan.fetching(self._copy_pages(pages, progress), self._copy_pieces(pieces))

    def _copy_files(self, plan: PullPlan) -> list[StoredPiece]:
        """Copy whole files. Returns the pieces of those that couldn't be copied."""
        left: list[StoredPiece] = []
        for name, original in plan.copy_files.items():
            if not self.target.copy_file(name, original):
                left += self.target.missing_pieces(name)
        return left

    def _copy_pieces(self, pieces: Iterable[StoredPiece]) -> list[StoredPiece]:
        """Copy pieces of files. Returns those that couldn't be copied."""
        left: list[StoredPiece] = []
        for piece in pieces:
            content = self.local.piece(str(piece.blake3))
            if content is None:
                left.append(piece)
            else:
                self.target.put_piece(piece, content)
        return left

    def _link_page_files(self, plan: PullPlan) -> list[int]:
        """Link page files. Returns the pages of those that couldn't be linked."""
        left: list[int] = []
        for name, pages in plan.version.page_ranges():
            original = plan.link_files.get(name)
            if original is not None and not self._link(name, pages, original, plan.version.page_bytes):
                left += pages
        return left

    def _link(self, name: str, pages: range, original: Path, page_bytes: int) -> bool:
        ids = [self.ids[page] for page in pages]
        return all(whole_pages(original, ids, page_bytes)) and self.target.link_page_file(name, original)

    def _copy_pages(self, pages: Sequence[int], progress: StepProgress) -> list[int]:
        """Copy pages. Returns those that couldn't be copied."""
        left: list[int] = []
        with closing(self.target.page_writer()) as writer:
            for done, page in enumerate(pages, 1):
                content = self.local.page(self.ids[page])
                if content is None:
                    left.append(page)
                else:
                    writer.put(page, content)
                progress(done, len(pages))
        return left

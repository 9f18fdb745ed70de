"""`Planner`: makes the plan of a pull. It reads and hashes what this device has, and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from weightpager.bundle.files.entry import check_file
from weightpager.delivery.pulling.assembly import Assembly
from weightpager.delivery.pulling.installed import STATE
from weightpager.delivery.pulling.local_pages import LocalParts, whole_pages
from weightpager.delivery.pulling.plan import PullPlan
from weightpager.delivery.version_file import StoredPiece, VersionFile
from weightpager.errors import BundleError
from weightpager.progress import Steps


@dataclass(frozen=True)
class Planner:
    """Compares what a version needs with what is here.

    Attributes:
        version: that is wanted.
        ids: of its pages.
        local: what bundles on this device have.
        assembly: what an earlier try has put together.
    """

    version: VersionFile
    ids: Sequence[bytes]
    local: LocalParts
    assembly: Assembly

    def plan(self, progress: Steps) -> PullPlan:
        """Find a source for each part that isn't in its place yet.

        Args:
            progress: told (pages looked for, pages in all).
        """
        copy_files, pieces = self._files()
        link_files, pages = self._page_files(progress)
        return PullPlan(
            self.version,
            link_files,
            copy_files,
            copy_pages=[page for page, is_here in pages.items() if is_here],
            fetch_pages=[page for page, is_here in pages.items() if not is_here],
            copy_pieces=[piece for piece, is_here in pieces.items() if is_here],
            fetch_pieces=[piece for piece, is_here in pieces.items() if not is_here],
        )

    def _files(self) -> tuple[dict[str, Path], dict[StoredPiece, bool]]:
        """Files to copy, and of each missing piece of the others whether it is here."""
        copied: dict[str, Path] = {}
        missing: dict[str, StoredPiece] = {}
        for name in self.version.files:
            if self.assembly.is_whole(name):
                continue
            original = self._whole_file(name)
            if original is not None:
                copied[name] = original
            else:
                missing |= {str(piece.blake3): piece for piece in self.assembly.missing_pieces(name)}
        return copied, {piece: self.local.piece(digest) is not None for digest, piece in missing.items()}

    def _page_files(self, progress: Steps) -> tuple[dict[str, Path], dict[int, bool]]:
        """Page files to link, and of each missing page of the others whether it is here."""
        linked: dict[str, Path] = {}
        pages: dict[int, bool] = {}
        for name, first, count in self.assembly.page_files():
            missing = self.assembly.missing_pages(name, first, count)
            original = self._whole_page_file(first, count) if missing else None
            if original is not None:
                linked[name] = original
            else:
                pages |= {page: self.local.page(self.ids[page]) is not None for page in missing}
            progress(first + count, self.version.pages)
        return linked, pages

    def _whole_file(self, name: str) -> Path | None:
        """The same file in another bundle; None if there is none that is whole."""
        wanted = self.version.files[name]
        for bundle in self.local.bundles:
            entry = bundle.manifest.files.get(name)
            if entry is not None and (entry.bytes, entry.blake3) == (wanted.bytes, wanted.blake3):
                with suppress(BundleError):
                    return check_file(bundle.root, name, entry)
        return None

    def _whole_page_file(self, first: int, count: int) -> Path | None:
        """A page file of the same pages that another pull has brought: it may be shared, since nobody writes to it."""
        wanted = self.ids[first : first + count]
        for bundle in self.local.bundles:
            pulled = STATE in bundle.root.parts and bundle.root != self.assembly.bundle.resolve()
            if pulled and bundle.manifest.page_bytes == self.version.page_bytes:
                for path, ids in bundle.page_files():
                    if ids.tobytes() == b"".join(wanted) and all(whole_pages(path, wanted, self.version.page_bytes)):
                        return path
        return None

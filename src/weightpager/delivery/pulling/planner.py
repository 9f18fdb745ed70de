"""`Planner`: makes the plan of a pull from what bundles on this device list, and from what an earlier try has left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weightpager.delivery.pulling.assembly import Assembly
from weightpager.delivery.pulling.local_parts import LocalParts
from weightpager.delivery.pulling.plan import PullPlan
from weightpager.delivery.version_file import StoredPiece, VersionFile
from weightpager.progress import StepProgress


@dataclass(frozen=True)
class Planner:
    """Compares what a version needs with what is here. It writes nothing.

    Of bundles on this device it reads no content: comparing hashes here and once more while they are copied would
    double a pull's time.

    Attributes:
        version: the version that is wanted.
        ids: ids of its pages.
        local: what bundles on this device list.
        assembly: what an earlier try has put together; its parts are compared with their hashes.
    """

    version: VersionFile
    ids: Sequence[bytes]
    local: LocalParts
    assembly: Assembly

    def plan(self, progress: StepProgress) -> PullPlan:
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

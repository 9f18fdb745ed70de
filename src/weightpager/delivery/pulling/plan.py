"""What a pull has to do, before anything moves. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from weightpager.delivery.pulling.page_ranges import page_ranges
from weightpager.delivery.version_file import StoredPiece, VersionFile


@dataclass(frozen=True)
class Cost:
    """What a version takes from a repository, beside the signed metadata.

    Attributes:
        pages: that the device lacks.
        pages_in_all: of the bundle.
        page_bytes: of the pages that it lacks.
        file_bytes: of other files' pieces, as they are stored.
        requests: for pages.
        bundle_bytes: of the whole bundle.
    """

    pages: int
    pages_in_all: int
    page_bytes: int
    file_bytes: int
    requests: int
    bundle_bytes: int

    @property
    def bytes(self) -> int:
        """All bytes that come."""
        return self.page_bytes + self.file_bytes


def pages_by_place(version: VersionFile) -> dict[tuple[int, int], list[int]]:
    """The bundle's pages that each place of a pack holds; more than one where pages are the same."""
    found: dict[tuple[int, int], list[int]] = {}
    for page, place in enumerate(version.places()):
        found.setdefault(place, []).append(page)
    return found


def cost(version: VersionFile, lacking: Collection[int], pieces: Sequence[StoredPiece]) -> Cost:
    """What fetching these pages and pieces takes.

    Args:
        version: that is wanted.
        lacking: numbers of pages.
        pieces: of files that the device lacks, each once.
    """
    wanted = [place for place, pages in pages_by_place(version).items() if pages[0] in lacking]
    files = sum(file.bytes for file in version.files.values())
    return Cost(
        pages=len(wanted),
        pages_in_all=version.pages,
        page_bytes=len(wanted) * version.page_bytes,
        file_bytes=sum(piece.stored for piece in pieces),
        requests=sum(1 for _ in page_ranges(wanted, version.page_bytes)),
        bundle_bytes=files + version.pages * version.page_bytes,
    )

"""`PullPlan`: what a pull has to do, before anything moves. Pure; `planner` makes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightpager.delivery.pulling.pack_requests import pack_requests
from weightpager.delivery.version_file import StoredPiece, VersionFile


@dataclass(frozen=True)
class Cost:
    """What a version takes from a repository, beside the signed metadata.

    Attributes:
        pages: number of pages that the device lacks.
        pages_in_all: number of the bundle's pages.
        page_bytes: bytes of the pages that it lacks.
        file_bytes: bytes of other files' pieces, as they are stored.
        requests: number of requests for pages.
        bundle_bytes: bytes of the whole bundle.
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


@dataclass(frozen=True)
class PullPlan:
    """Where each part of a version comes from. Parts that already are in their places aren't listed.

    What is linked or copied may turn out damaged, and is fetched then: see `fetching`.

    Attributes:
        version: the version that is wanted.
        link_files: names of page files, each with one of the same pages that another pull has brought.
        copy_files: names of other files, each with the same one in another bundle.
        copy_pages: numbers of pages that bundles on this device list.
        fetch_pages: numbers of pages that only the repository has.
        copy_pieces: pieces of files that bundles on this device list, each once.
        fetch_pieces: pieces of files that only the repository has, each once.
    """

    version: VersionFile
    link_files: Mapping[str, Path]
    copy_files: Mapping[str, Path]
    copy_pages: Sequence[int]
    fetch_pages: Sequence[int]
    copy_pieces: Sequence[StoredPiece]
    fetch_pieces: Sequence[StoredPiece]

    @property
    def new_bytes(self) -> int:
        """Bytes that it may write: pages, and all files, each of which may be written anew."""
        pages = len(self.copy_pages) + len(self.fetch_pages)
        return pages * self.version.page_bytes + self.version.file_bytes

    def fetch_places(self) -> dict[tuple[int, int], list[int]]:
        """The pages to fetch by pack and place in it; several pages where they are the same."""
        wanted, places = frozenset(self.fetch_pages), dict[tuple[int, int], list[int]]()
        for page, place in enumerate(self.version.places()):
            if page in wanted:
                places.setdefault(place, []).append(page)
        return places

    def fetching(self, pages: Iterable[int], pieces: Iterable[StoredPiece]) -> PullPlan:
        """The plan that fetches these too, which were to be copied."""
        all_pieces = {piece.blake3: piece for piece in [*self.fetch_pieces, *pieces] if piece.blake3 is not None}
        return replace(self, fetch_pages=[*self.fetch_pages, *pages], fetch_pieces=list(all_pieces.values()))

    def cost(self) -> Cost:
        """What it takes from the repository."""
        version, places = self.version, self.fetch_places()
        return Cost(
            pages=len(places),
            pages_in_all=version.pages,
            page_bytes=len(places) * version.page_bytes,
            file_bytes=sum(piece.stored for piece in self.fetch_pieces),
            requests=sum(1 for _ in pack_requests(places, version.page_bytes)),
            bundle_bytes=version.file_bytes + version.pages * version.page_bytes,
        )

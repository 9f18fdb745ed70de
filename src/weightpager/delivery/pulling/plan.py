"""`PullPlan`: what a pull has to do, before anything moves. Pure; `planner` makes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightpager.delivery.version_file import StoredPiece, VersionFile

REQUEST_BYTES = 8 << 20
"""A request asks for no more, so that several connections share the work, and a cut one loses little."""

_WASTE = 32
"""One byte of so many may be of pages that aren't needed, where that saves a request."""


@dataclass(frozen=True)
class PackRequest:
    """What one request asks a pack for: pages by their places in it, ascending; others may lie between them."""

    pack: int
    pages: tuple[int, ...]

    @property
    def first(self) -> int:
        return self.pages[0]

    @property
    def end(self) -> int:
        return self.pages[-1] + 1

    def without(self, landed: Iterable[int]) -> PackRequest | None:
        """What is left to ask for; None for nothing."""
        left = tuple(sorted(set(self.pages) - set(landed)))
        return PackRequest(self.pack, left) if left else None


def pack_requests(places: Iterable[tuple[int, int]], page_bytes: int) -> Iterator[PackRequest]:
    """Requests that bring these pages, each a pack's number and a place in it, once."""
    most = max(1, REQUEST_BYTES // page_bytes)
    pending: list[int] = []
    of_pack = -1
    for pack, place in sorted(set(places)):
        if pending and not (pack == of_pack and _joins(pending, place, most)):
            yield PackRequest(of_pack, tuple(pending))
            pending = []
        of_pack = pack
        pending.append(place)
    if pending:
        yield PackRequest(of_pack, tuple(pending))


def _joins(pending: list[int], place: int, most: int) -> bool:
    """Whether a page joins those before it: the request stays small, and few of its pages are for nothing."""
    span = place + 1 - pending[0]
    return span <= most and (span - len(pending) - 1) * _WASTE <= span


@dataclass(frozen=True)
class Cost:
    """What a version takes from a repository, beside the signed metadata.

    Attributes:
        pages, page_bytes: number and bytes of the pages that the device lacks.
        pages_in_all: number of the bundle's pages.
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
        return self.page_bytes + self.file_bytes


@dataclass(frozen=True)
class PullPlan:
    """Where each part of a version comes from. Parts that already are in their places aren't listed.

    What is linked or copied may turn out damaged, and is fetched then: see `fetching`.

    Attributes:
        link_files: names of page files, each with one of the same pages that another pull has brought.
        copy_files: names of other files, each with the same one in another bundle.
        copy_pages, copy_pieces: numbers of pages, and pieces of files, that bundles on this device list, each once.
        fetch_pages, fetch_pieces: those that only the repository has.
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
        version, places = self.version, self.fetch_places()
        return Cost(
            pages=len(places),
            pages_in_all=version.pages,
            page_bytes=len(places) * version.page_bytes,
            file_bytes=sum(piece.stored for piece in self.fetch_pieces),
            requests=sum(1 for _ in pack_requests(places, version.page_bytes)),
            bundle_bytes=version.file_bytes + version.pages * version.page_bytes,
        )

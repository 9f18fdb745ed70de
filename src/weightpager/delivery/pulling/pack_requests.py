"""Which bytes of packs to ask for: pages that lie near each other come by one request. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

REQUEST_BYTES = 8 << 20
"""A request asks for no more, so that several connections share the work, and a cut one loses little."""

_WASTE = 32
"""One byte of so many may be of pages that aren't needed, where that saves a request."""


@dataclass(frozen=True)
class PackRequest:
    """What one request asks a pack for.

    Attributes:
        pack: the pack's number.
        pages: places in the pack of the pages that are needed, ascending; others may lie between them.
    """

    pack: int
    pages: tuple[int, ...]

    @property
    def first(self) -> int:
        """Place of the first page."""
        return self.pages[0]

    @property
    def end(self) -> int:
        """Place behind the last page."""
        return self.pages[-1] + 1

    def without(self, landed: Iterable[int]) -> PackRequest | None:
        """What is left to ask for; None for nothing."""
        left = tuple(sorted(set(self.pages) - set(landed)))
        return PackRequest(self.pack, left) if left else None


def pack_requests(places: Iterable[tuple[int, int]], page_bytes: int) -> Iterator[PackRequest]:
    """Requests that bring these pages, each a pack's number and a place in it.

    Args:
        places: of the pages; each is asked for once.
        page_bytes: bytes of a page.
    """
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

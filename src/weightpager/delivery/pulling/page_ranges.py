"""Which bytes of packs to ask for: pages that lie near each other come by one request. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

RANGE_BYTES = 8 << 20
"""A request asks for no more, so that several connections share the work, and a cut one loses little."""

_WASTE = 32
"""One byte of so many may be of pages that aren't needed, where that saves a request."""


@dataclass(frozen=True)
class PageRange:
    """Pages of one pack that one request brings.

    Attributes:
        pack: its number.
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

    def without(self, landed: Iterable[int]) -> PageRange | None:
        """What is left of it; None for nothing."""
        left = tuple(sorted(set(self.pages) - set(landed)))
        return PageRange(self.pack, left) if left else None


def page_ranges(places: Iterable[tuple[int, int]], page_bytes: int) -> Iterator[PageRange]:
    """Requests that bring these pages, each a pack's number and a place in it.

    Args:
        places: of the pages; each is asked for once.
        page_bytes: bytes of a page.
    """
    most = max(1, RANGE_BYTES // page_bytes)
    pending: list[int] = []
    of_pack = -1
    for pack, place in sorted(set(places)):
        if pending and not (pack == of_pack and _joins(pending, place, most)):
            yield PageRange(of_pack, tuple(pending))
            pending = []
        of_pack = pack
        pending.append(place)
    if pending:
        yield PageRange(of_pack, tuple(pending))


def _joins(pending: list[int], place: int, most: int) -> bool:
    """Whether a page joins those before it: the range stays small, and few of its pages are for nothing."""
    span = place + 1 - pending[0]
    return span <= most and (span - len(pending) - 1) * _WASTE <= span

"""`PageTransfer`: pages that one request brings, each checked as it lands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from blake3 import blake3

from weightpager.delivery.names import pack_path
from weightpager.delivery.pulling.pack_requests import PackRequest
from weightpager.delivery.sources.source import Source, TransferError

Landed = Callable[[int, int, bytearray], None]
"""Told (pack, place in it, bytes) of a page that is what it should be."""


class PageTransfer:
    """Implements `Transfer`."""

    def __init__(
        self,
        source: Source,
        pack: str,
        request: PackRequest,
        ids: Mapping[int, bytes],
        page_bytes: int,
        landed: Landed,
    ) -> None:
        """State the transfer; nothing is asked for yet.

        Args:
            source: of the repository.
            pack: name of the pack.
            request: to that pack.
            ids: of its pages, by their places in the pack.
            page_bytes: bytes of a page.
            landed: takes each page once.
        """
        self._source = source
        self._path = pack_path(pack)
        self._request: PackRequest | None = request
        self._ids = ids
        self._size = page_bytes
        self._landed = landed

    def left(self) -> int:
        return len(self._request.pages) * self._size if self._request is not None else 0

    def attempt(self) -> None:
        if self._request is None:
            return
        done: list[int] = []
        try:
            self._receive(self._request, done)
        finally:
            self._request = self._request.without(done)

    def _receive(self, request: PackRequest, done: list[int]) -> None:
        size, wanted = self._size, iter(request.pages)
        place: int | None = next(wanted)
        with self._source.open(self._path, request.first * size, request.end * size) as stream:
            at, buffer = stream.start, bytearray()
            for piece in stream.pieces:
                view = memoryview(piece)
                while view and place is not None:
                    begin = place * size + len(buffer)
                    if at + len(view) <= begin:
                        at += len(view)
                        break
                    view, at = view[begin - at :], begin
                    taken = view[: size - len(buffer)]
                    buffer += taken
                    view, at = view[len(taken) :], at + len(taken)
                    if len(buffer) == size:
                        self._take(request.pack, place, buffer)
                        done.append(place)
                        buffer.clear()
                        place = next(wanted, None)
                if place is None:
                    return
        raise TransferError(f"{self._source.place}/{self._path}: expected page {place}, found the end before it")

    def _take(self, pack: int, place: int, content: bytearray) -> None:
        if blake3(content).digest() != self._ids[place]:
            raise TransferError(
                f"{self._source.place}/{self._path}: page {place} isn't what was signed: expected BLAKE3 "
                f"{self._ids[place].hex()[:16]}…, found other bytes; the server, or something on the way, changes files"
            )
        self._landed(pack, place, content)

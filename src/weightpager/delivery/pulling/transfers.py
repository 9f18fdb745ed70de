"""Transfers over several connections, tried again where something broke, given up where nothing moves any more."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from blake3 import blake3

from weightpager.delivery.pieces import restored
from weightpager.delivery.pulling.plan import PackRequest
from weightpager.delivery.sources import Source, TransferError, read_at_most
from weightpager.delivery.version_file import StoredPiece, object_path, pack_path

TRIES = 5
"""A pull gives up after so many tries in a row that brought no byte of use."""

FIRST_WAIT = 0.2
"""Seconds before the second try. Each further wait is twice as long."""


class Transfer(Protocol):
    """Something to fetch, which keeps what has come when it is cut off."""

    def attempt(self) -> None:
        """Fetch what is left. Raises `TransferError` if it broke; another try may do."""

    def left(self) -> int:
        """Bytes that are left."""


class _Run:
    """Threads that share a queue of transfers; the first error that lasts stops all."""

    def __init__(self, transfers: Iterable[Transfer]) -> None:
        self._waiting = deque(transfers)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.failure: BaseException | None = None

    def work(self) -> None:
        while not self._stopped.is_set():
            with self._lock:
                if not self._waiting:
                    return
                transfer = self._waiting.popleft()
            try:
                self._bring(transfer)
            except BaseException as error:  # noqa: BLE001 - whoever waits for all raises it
                self.failure = self.failure or error
                self.stop()

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopped.set()

    def _bring(self, transfer: Transfer) -> None:
        tries, left = 0, transfer.left()
        while not self._stopped.is_set():
            try:
                transfer.attempt()
            except TransferError:
                tries = 1 if transfer.left() < left else tries + 1
                left = transfer.left()
                if tries >= TRIES:
                    raise
                self._stopped.wait(FIRST_WAIT * 2 ** (tries - 1) * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            else:
                return


def bring(transfers: Iterable[Transfer], connections: int) -> None:
    """Carry out all transfers. Raises the `DeliveryError` of the first that failed for good; what has come stays."""
    run = _Run(transfers)
    threads = [threading.Thread(target=run.work, daemon=True) for _ in range(connections)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads) and run.failure is None:
            threads[0].join(0.05) if threads[0].is_alive() else time.sleep(0.005)
    finally:
        run.stop()  # whoever still waits for a server that hangs ends with its timeout, and writes only what is right
        for thread in threads:
            thread.join(1.0)
    if run.failure is not None:
        raise run.failure


Landed = Callable[[int, int, bytearray], None]
"""Told (pack, place in it, bytes) of a page that is what it should be."""


class PageTransfer:
    """Implements `Transfer`; each page lands once."""

    def __init__(
        self,
        source: Source,
        pack: str,
        request: PackRequest,
        ids: Mapping[int, bytes],
        page_bytes: int,
        landed: Landed,
    ) -> None:
        """``ids`` are those of the request's pages, by their places in the pack."""
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


class PieceTransfer:
    """Implements `Transfer`."""

    def __init__(self, source: Source, piece: StoredPiece, landed: Callable[[StoredPiece, bytes], None]) -> None:
        self._source = source
        self._piece = piece
        self._landed = landed
        self._done = False

    def left(self) -> int:
        return 0 if self._done else self._piece.stored

    def attempt(self) -> None:
        path = object_path(str(self._piece.blake3))
        raw = restored(self._piece, read_at_most(self._source, path, self._piece.stored))
        if raw is None:
            raise TransferError(
                f"{self._source.place}/{path}: expected what was signed, found other bytes; the server, or something "
                "on the way, changes files"
            )
        self._landed(self._piece, raw)
        self._done = True

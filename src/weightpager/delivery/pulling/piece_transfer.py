"""`PieceTransfer`: a piece of a file, checked when it has come."""

from __future__ import annotations

from collections.abc import Callable

from weightpager.delivery.names import object_path
from weightpager.delivery.pieces import restored
from weightpager.delivery.sources.source import Source, TransferError, read_at_most
from weightpager.delivery.version_file import StoredPiece


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

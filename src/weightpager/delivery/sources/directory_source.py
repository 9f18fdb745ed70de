"""A repository in a directory: a mounted share, or a stick that somebody has carried here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from weightpager.bundle.files.regular_file import open_regular
from weightpager.delivery.sources.rate_limit import RateLimit
from weightpager.delivery.sources.source import MissingError, Stream, TransferError

_PIECE = 1 << 18


class DirectorySource:
    """Implements `Source`."""

    whole_files = False

    def __init__(self, root: Path, limit: RateLimit) -> None:
        self.place = str(root)
        self.received = 0
        self._root = root
        self._limit = limit

    @contextmanager
    def open(self, path: str, start: int = 0, end: int | None = None) -> Iterator[Stream]:
        with self._opened(path) as file:
            file.seek(start)
            yield Stream(start, self._pieces(file, path, None if end is None else end - start))

    def _opened(self, path: str) -> BinaryIO:
        try:
            return open_regular(self._root / path)
        except FileNotFoundError as error:
            raise MissingError(f"{self.place}: expected the file {path}, found none") from error
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _pieces(self, file: BinaryIO, path: str, left: int | None) -> Iterator[bytes]:
        while left is None or left > 0:
            try:
                piece = file.read(_PIECE if left is None else min(left, _PIECE))
            except OSError as error:
                raise self._unreadable(path, error) from error
            if not piece:
                if left is not None:
                    raise TransferError(f"{self.place}: {path}: expected {left} more bytes, found its end")
                return
            self._limit.wait_for(len(piece))
            self.received += len(piece)
            if left is not None:
                left -= len(piece)
            yield piece

    def _unreadable(self, path: str, error: OSError) -> TransferError:
        return TransferError(f"{self.place}: {path}: cannot be read: {error.strerror or error}")

    def close(self) -> None:
        """Do nothing: no file stays open."""

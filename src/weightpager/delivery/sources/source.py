"""`Source`: what a pull needs of a repository, wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from weightpager.errors import DeliveryError


class TransferError(DeliveryError):
    """Bytes didn't come as they should have; another try may do."""


class MissingError(DeliveryError):
    """The repository has no such file."""


@dataclass
class Stream:
    """Bytes of a file as they come.

    Attributes:
        start: offset of the first byte; 0 if the source gives the whole file whatever was asked for.
        pieces: the bytes in pieces of any length.
    """

    start: int
    pieces: Iterator[bytes]


class Source(Protocol):
    """Files of a repository by their paths in it. Every byte may be wrong, so that readers compare hashes.

    Attributes:
        place: where it is, as messages name it.
        whole_files: whether it has answered a request for a part with the whole file.
        received: number of bytes that have come, of whatever they were.
    """

    place: str
    whole_files: bool
    received: int

    def open(self, path: str, start: int = 0, end: int | None = None) -> AbstractContextManager[Stream]:
        """A file, or its bytes from ``start`` to ``end``.

        Raises:
            MissingError: there is none.
            TransferError: it can't be read, ended early, or isn't the part that was asked for.
        """

    def close(self) -> None:
        """Let go of connections."""


def read_at_most(source: Source, path: str, most: int) -> bytes:
    """Read a small file whole.

    Raises:
        DeliveryError: as `Source.open`, or it is larger than ``most`` bytes.
    """
    content = bytearray()
    with source.open(path) as stream:
        for piece in stream.pieces:
            content += piece
            if len(content) > most:
                raise TransferError(f"{source.place}: {path}: expected at most {most} bytes, found more")
    return bytes(content)

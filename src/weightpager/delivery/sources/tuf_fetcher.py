"""`TufFetcher`: signed metadata and targets come by the same `Source` as all else, with its limits."""

from __future__ import annotations

from collections.abc import Iterator

from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient import FetcherInterface

from weightpager.delivery.sources.source import MissingError, Source, TransferError


class TufFetcher(FetcherInterface):
    """Fetches from a `Source`; URLs are paths in the repository."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        pieces = self._pieces(url)
        next(pieces)  # a file that is missing must raise now, where the library expects it
        return pieces

    def _pieces(self, url: str) -> Iterator[bytes]:
        try:
            with self._source.open(url) as stream:
                yield b""  # once the file is open
                yield from stream.pieces
        except MissingError as error:
            raise DownloadHTTPError(str(error), 404) from error
        except TransferError as error:
            raise DownloadError(str(error)) from error

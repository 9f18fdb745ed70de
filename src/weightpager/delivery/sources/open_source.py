"""From what somebody has typed to a `Source`."""

from __future__ import annotations

from pathlib import Path

from weightpager.delivery.names import METADATA
from weightpager.delivery.sources.directory_source import DirectorySource
from weightpager.delivery.sources.http_source import HttpSource
from weightpager.delivery.sources.rate_limit import RateLimit
from weightpager.delivery.sources.source import Source
from weightpager.errors import ConfigError
from weightpager.machine.paths import has_directory


def open_source(
    place: str, bytes_per_second: float | None = None, connections: int = 4, *, redirects: bool = False
) -> Source:
    """Open a repository.

    Args:
        place: URL or directory.
        bytes_per_second: that may be read; None for no limit.
        connections: at once.
        redirects: whether a server may redirect to other hosts. What comes from there is checked as all else.

    Raises:
        ConfigError: it is neither.
    """
    limit = RateLimit(bytes_per_second)
    if "://" in place:
        return HttpSource(place, limit, connections, redirects=redirects)
    if not has_directory(Path(place) / METADATA):
        raise ConfigError(f"expected the URL or directory of a repository, found no {METADATA}/ in {place!r}")
    return DirectorySource(Path(place), limit)

"""The cache of archives: downloaded once, checked on every use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from weightpager.bundle.files.new_directory import scratch
from weightpager.lab.samples.download.clients import download, unavailable
from weightpager.lab.samples.download.pins import Archive
from weightpager.lab.samples.sample import SampleUnavailable

__all__ = ["Archive", "Fetcher", "fetch", "sha256_of"]


def fetch(archive: Archive, cache: Path) -> Path:
    """The archive's file in ``cache``, downloaded if it is absent or damaged there.

    The file's SHA-256 is the pinned one whenever this returns. Safe to call from several processes at once: the file
    appears in one step.

    Raises:
        SampleUnavailable: the client is missing or failed, the bytes are not the pinned ones, or the cache cannot be
            written.
    """
    target = cached(archive, cache)
    if target.is_file() and sha256_of(target) == archive.sha256:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch(target.parent, ".download-") as temporary:
            download(archive, temporary)
            _verified(archive, temporary / archive.file).replace(target)
    except OSError as error:
        raise unavailable(archive, f"the cache cannot be written: {error}") from error
    return target


def cached(archive: Archive, cache: Path) -> Path:
    """Where ``fetch`` keeps the archive's file."""
    return cache / "archives" / archive.sha256 / archive.file


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _verified(archive: Archive, path: Path) -> Path:
    if not path.is_file():
        others = ", ".join(sorted(other.name for other in path.parent.iterdir() if other.is_file())) or "nothing"
        raise unavailable(archive, f"expected a file {archive.file}, got {others}")
    digest = sha256_of(path)
    if digest != archive.sha256:
        raise unavailable(archive, f"expected SHA-256 {archive.sha256}, got {digest}; the file was discarded")
    return path


class Fetcher:
    """``fetch`` for several samples in a row: reports downloads, and tries an archive that failed only once."""

    def __init__(self, cache: Path, report: Callable[[str], None]) -> None:
        self._cache, self._report = cache, report
        self._failed: dict[str, SampleUnavailable] = {}

    def __call__(self, archive: Archive) -> Path:
        """Like ``fetch``."""
        if archive.sha256 in self._failed:
            raise self._failed[archive.sha256]
        if not cached(archive, self._cache).exists():
            self._report(f"downloading {archive} with {archive.client.removesuffix('-sdist')}")
        try:
            return fetch(archive, self._cache)
        except SampleUnavailable as error:
            self._failed[archive.sha256] = error
            raise

"""Reading archives without unpacking them.

Files are read into memory. No name, link or permission of an archive ever reaches the file system, so none can leave
the directory that it is meant for.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

from weightpager.lab.samples.sample import SampleUnavailable


def members(archive: Path | bytes, *patterns: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of an archive's regular files that match a shell pattern, in the archive's order.

    Args:
        archive: a wheel or a gzipped tar file, or the bytes of one.
        patterns: ``*`` also matches slashes.
    """
    with io.BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb") as raw:
        files = _zip_files(raw) if zipfile.is_zipfile(raw) else _tar_files(raw)
        for name, read in files:
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                yield name, read()


def member(archive: Path | bytes, name: str) -> bytes:
    """Content of one regular file.

    Raises:
        SampleUnavailable: the archive has no regular file of that name.
    """
    for _, content in members(archive, name):
        return content
    raise SampleUnavailable(f"expected a regular file {name} in the archive, got none")


def _zip_files(raw: IO[bytes]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(raw) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, lambda info=info: archive.read(info)  # type: ignore[misc]


def _tar_files(raw: IO[bytes]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    raw.seek(0)
    with tarfile.open(fileobj=raw, mode="r:gz") as archive:
        for info in archive:
            content = archive.extractfile(info) if info.isfile() else None
            if content is not None:
                yield info.name, content.read

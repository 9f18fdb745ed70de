"""Whether a bundle's directory is what it was, without reading it."""

from __future__ import annotations

from pathlib import Path

from weightpager.bundle.format.names import MANIFEST

State = tuple[int, int, int]
"""The inode, the time in nanoseconds and the size of a bundle's manifest, which each change of a bundle replaces."""


def state_of(path: Path) -> State | None:
    """The state of the bundle in a directory; None if there is none."""
    try:
        found = (path / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size

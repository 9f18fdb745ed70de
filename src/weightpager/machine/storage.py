"""How much room a file system has."""

from __future__ import annotations

import os
from pathlib import Path


def free_bytes(path: Path) -> int | None:
    """Bytes that this user may still write where ``path`` is or will be; None if the system doesn't tell."""
    try:
        facts = os.statvfs(_existing(path))
    except OSError:
        return None
    return facts.f_bavail * facts.f_frsize


def file_system(path: Path) -> int | None:
    """A number that paths share which are, or will be, on one file system; None if the system doesn't tell."""
    try:
        return _existing(path).stat().st_dev
    except OSError:
        return None


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next((folder for folder in (path, *path.parents) if os.path.lexists(folder)), Path("/"))

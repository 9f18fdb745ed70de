"""Who may read a bundle: what replaces a file or directory is as private as that was."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def imitate(path: Path, model: os.stat_result) -> None:
    """Give a file or directory another one's mode, and its owner and group where that is permitted.

    Raises:
        OSError: the storage refused the mode.
    """
    for owner, group in ((-1, model.st_gid), (model.st_uid, -1)):
        with suppress(OSError):
            os.chown(path, owner, group)
    path.chmod(stat.S_IMODE(model.st_mode))


def imitate_tree(root: Path, folder: os.stat_result, file: os.stat_result) -> None:
    """`imitate` for a directory and all in it. ``root`` comes last: until then nobody else can enter it.

    Files with more than one hard link are left alone: they belong to other bundles too.
    """
    for path in root.rglob("*"):
        if path.is_dir():
            imitate(path, folder)
        elif path.stat().st_nlink == 1:
            imitate(path, file)
    imitate(root, folder)


def open_up(root: Path) -> None:
    """Give a directory from ``mkdtemp``, which is private, the mode that a new directory would have here."""
    usual = root / ".mode"
    usual.mkdir()
    mode = stat.S_IMODE(usual.stat().st_mode)
    usual.rmdir()
    root.chmod(mode)

"""The file system and the disk behind a path."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from weightpager.errors import ConfigError
from weightpager.machine.mounts import mount_of


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


def disk_of(path: str | os.PathLike[str]) -> str:
    """``"major:minor"`` of the whole disk that a path lies on, as cgroups name it.

    Raises:
        ConfigError: its file system has no disk of its own.
    """
    number = Path(path).stat().st_dev
    if os.major(number) == 0:  # btrfs hides its disk's number, file systems without a disk have none
        number = _mounted_device(path)
    return whole_disk(os.major(number), os.minor(number))


def whole_disk(major: int, minor: int, sysfs: Path = Path("/sys")) -> str:
    """The disk of a partition; a whole disk is its own.

    Raises:
        ConfigError: the kernel has no such block device.
    """
    node = (sysfs / "dev/block" / f"{major}:{minor}").resolve()
    disk = node.parent if (node / "partition").exists() else node
    try:
        return (disk / "dev").read_text().strip()
    except OSError as error:
        raise ConfigError(f"expected a block device, got {major}:{minor}, which {sysfs} doesn't know") from error


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next((folder for folder in (path, *path.parents) if os.path.lexists(folder)), Path("/"))


def _mounted_device(path: str | os.PathLike[str]) -> int:
    try:
        mount = mount_of(path)
    except LookupError as error:
        asked = f"{os.fspath(path)}: expected a file system on a disk"
        raise ConfigError(f"{asked}, got one whose mount is out of sight, as in a chroot") from error
    try:
        source = Path(mount.source).stat()
    except OSError:
        source = None
    if source is None or not stat.S_ISBLK(source.st_mode):
        raise ConfigError(f"{os.fspath(path)}: expected a file system on a disk, got {mount.kind} on {mount.source!r}")
    return source.st_rdev

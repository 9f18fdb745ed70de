"""What is mounted where, as this process sees it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """One line of ``/proc/self/mountinfo``.

    Attributes:
        number: the mount's id, as in ``/proc/self/fdinfo``.
        root: the directory of the file system that is mounted.
        point: where it is mounted.
        kind: the file system's type.
        source: what is mounted, a device's path for file systems on disks.
        options: of the file system, not of the mount.
    """

    number: int
    root: str
    point: Path
    kind: str
    source: str
    options: tuple[str, ...]

    def below(self, root: Path) -> Mount:
        """The same, with a point that is found below another root directory."""
        return replace(self, point=root / os.fspath(self.point).lstrip("/"))


def mounts(table: str | None = None) -> list[Mount]:
    """The mounts in the text of a ``mountinfo`` file, less lines that aren't such; without one, those of this process.

    Raises:
        OSError: a system without ``/proc``, which wasn't given a text.
    """
    text = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()) if table is None else table
    parsed = map(_parse_mount, text.split("\n"))  # other separators may be part of a path
    return [mount for mount in parsed if mount is not None]


def mount_of(path: str | os.PathLike[str]) -> Mount:
    """The mount that a path lies on.

    Raises:
        LookupError: it lies on none that this process sees.
    """
    number = _mount_number(path)
    for mount in mounts():
        if mount.number == number:
            return mount
    raise LookupError(f"{os.fspath(path)}: no mount has the number {number}")


def _mount_number(path: str | os.PathLike[str]) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines())
    finally:
        os.close(descriptor)
    return int(fields["mnt_id"])


def _parse_mount(line: str) -> Mount | None:
    """``36 35 98:0 /root /point rw shared:1 - ext4 /dev/sda1 rw,errors=continue``; spaces are written as octal."""
    ours, _, theirs = line.partition(" - ")
    try:
        number, _, _, root, point, *_ = ours.split(" ")
        kind, source, options = theirs.split(" ", 2)
    except ValueError:
        return None
    if not number.isdecimal():
        return None
    return Mount(
        int(number), _unescape(root), Path(_unescape(point)), kind, _unescape(source), tuple(options.split(","))
    )


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)

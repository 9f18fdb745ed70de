"""Newer states of a bundle, as releases of it bring them: cheap, since only bytes of pages differ."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.fuzz.sealing import rewrite_pages
from weightpager.bundle import Bundle
from weightpager.bundle.format import page_file

Content = npt.NDArray[np.uint8]


class Releases:
    """A link to the latest of a bundle's releases, each in a directory of its own; older ones are deleted.

    Attributes:
        path: the link, which an engine opens.
        pages: uint8 [pages, page_bytes], what the latest has in its one file of bfloat16 pages.
        original: what the first one has there.
    """

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.path, self._folder, self._count = folder / "latest.bundle", folder, 0
        self._link(Path(shutil.copytree(bundle, folder / "0.bundle")))
        self.pages = self._content()[1].copy()
        self.original = self.pages.copy()

    def variant(self, pages: npt.NDArray[np.integer], number: int) -> Content:
        """The original content of some pages with another mantissa, 0 for the same."""
        content = self.original[pages].copy()
        content[:, ::2] ^= number % 128
        content[:, 2::2] ^= number // 128 % 128
        return content

    def release(self, change: Callable[[Content], None]) -> Bundle:
        """Copy the latest one and change its pages; those that nothing is said of stay as they are."""
        self._count += 1
        old, new = self.path.resolve(), self._folder / f"{self._count}.bundle"
        shutil.copytree(old, new)
        change(self.pages)
        header, content = self._content()
        content[:] = self.pages
        rewrite_pages(new, page_file.file_name(0), 0, header + content.tobytes())
        self._link(new)
        shutil.rmtree(old)
        return Bundle.open(new)

    def _content(self) -> tuple[bytes, Content]:
        size = Bundle.open(self.path).page_bytes
        whole = (self.path / page_file.file_name(0)).read_bytes()
        start = 8 + int.from_bytes(whole[:8], "little")
        return whole[:start], np.frombuffer(bytearray(whole[start:]), np.uint8).reshape(-1, size)

    def _link(self, target: Path) -> None:
        link = self._folder / "next"
        link.symlink_to(target)
        link.replace(self.path)


def deleted_files() -> list[str]:
    """Files that this process has open though they were deleted."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except FileNotFoundError:  # the directory itself
            continue
    return [name for name in found if name.endswith("(deleted)") and ".bundle/" in name]

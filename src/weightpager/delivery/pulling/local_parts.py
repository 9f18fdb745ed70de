"""`LocalParts`: pages and files that a device has in the bundles beside the new one, and in what broken pulls left."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from weightpager.bundle import Manifest
from weightpager.bundle.files.regular_file import open_regular
from weightpager.bundle.format import page_file
from weightpager.bundle.format.names import MANIFEST
from weightpager.bundle.reader import read_manifest, read_page_index
from weightpager.delivery.pulling.installed import BUNDLE, STATE, VERSION
from weightpager.delivery.version_file import StoredFile, VersionFile
from weightpager.errors import BundleError, DeliveryError


@dataclass(frozen=True)
class LocalBundle:
    """A bundle that may be damaged: nothing of it counts before its hash has been compared.

    Attributes:
        ids: its pages' ids, uint8 [pages, 32].
        version: the version that it was pulled as; None if it came otherwise.
    """

    root: Path
    manifest: Manifest
    ids: npt.NDArray[np.uint8]
    version: VersionFile | None

    def page_files(self) -> Iterator[tuple[Path, npt.NDArray[np.uint8]]]:
        """Its page files and the ids of their pages."""
        for name, first, count in self.manifest.page_ranges():
            yield self.root / name, self.ids[first : first + count]


def local_bundles(into: Path) -> list[LocalBundle]:
    """All bundles in a directory, those of pulls included, each once."""
    bundles: dict[str, LocalBundle] = {}
    for root in _roots(into):
        path = os.path.realpath(root)
        if path not in bundles:
            try:
                manifest = read_manifest(root)
                ids = read_page_index(root, manifest).ids
            except BundleError:
                continue
            bundles[path] = LocalBundle(Path(path), manifest, ids, _version(Path(path)))
    return list(bundles.values())


def _roots(into: Path) -> Iterator[Path]:
    for pattern in (
        f"*/{MANIFEST}",
        f"{STATE}/*/versions/*/{BUNDLE}/{MANIFEST}",
        f"{STATE}/*/partial/*/{BUNDLE}/{MANIFEST}",
    ):
        yield from (path.parent for path in sorted(into.glob(pattern)))


def _version(root: Path) -> VersionFile | None:
    try:
        return VersionFile.parse((root.parent / VERSION).read_bytes())
    except (OSError, DeliveryError):
        return None


class LocalParts:
    """What bundles on this device have. They list it without a look at it; `page` and `piece` compare hashes."""

    def __init__(self, bundles: Sequence[LocalBundle], ids: Iterable[bytes], page_bytes: int, new: Path) -> None:
        """List what bundles, which may be damaged, should have of the wanted pages.

        ``new`` is the directory of the bundle that is put together, whose page files can't be linked to themselves.
        """
        self._bundles = bundles
        self._page_bytes = page_bytes
        self._new = new.resolve()
        self._pages: dict[bytes, list[tuple[Path, int]]] = {digest: [] for digest in ids}
        self._pieces: dict[str, tuple[Path, int, int]] = {}
        for bundle in bundles:
            self._list_pieces(bundle)
            if bundle.manifest.page_bytes == page_bytes:
                self._list_pages(bundle)

    def lists_page(self, digest: bytes) -> bool:
        """Whether a page should be here."""
        return bool(self._pages.get(digest))

    def lists_piece(self, digest: str) -> bool:
        """Whether a piece of a file should be here."""
        return digest in self._pieces

    def file(self, name: str, wanted: StoredFile) -> Path | None:
        """A file that should be the same one; None if there is none."""
        for bundle in self._bundles:
            entry = bundle.manifest.files.get(name)
            if entry is not None and (entry.bytes, entry.blake3) == (wanted.bytes, wanted.blake3):
                return bundle.root / name
        return None

    def page_file(self, ids: Sequence[bytes]) -> Path | None:
        """A page file that should have these pages, and that another pull has brought; None if there is none.

        It may be shared, since nobody writes to it.
        """
        for bundle in self._bundles:
            pulled = STATE in bundle.root.parts and bundle.root != self._new
            if pulled and bundle.manifest.page_bytes == self._page_bytes:
                for path, listed in bundle.page_files():
                    if listed.tobytes() == b"".join(ids):
                        return path
        return None

    def page(self, digest: bytes) -> bytes | None:
        """A page's bytes, checked; None if there is none that is whole."""
        for path, offset in self._pages.get(digest, ()):
            content = read_part(path, offset, self._page_bytes)
            if blake3(content).digest() == digest:
                return content
        return None

    def piece(self, digest: str) -> bytes | None:
        """A piece's bytes, checked; None if there is none that is whole."""
        if digest not in self._pieces:
            return None
        content = read_part(*self._pieces[digest])
        return content if blake3(content).hexdigest() == digest else None

    def _list_pages(self, bundle: LocalBundle) -> None:
        for path, ids in bundle.page_files():
            start = len(page_file.header(len(ids), self._page_bytes))
            for number, row in enumerate(ids):
                places = self._pages.get(row.tobytes())
                if places is not None:
                    places.append((path, start + number * self._page_bytes))

    def _list_pieces(self, bundle: LocalBundle) -> None:
        for name, file in (bundle.version.files if bundle.version is not None else {}).items():
            for start, piece in file.starts():
                if piece.blake3 is not None:
                    self._pieces[piece.blake3] = bundle.root / name, start, piece.bytes


def read_part(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a file; fewer where they can't be read."""
    try:
        with open_regular(path) as file:
            return os.pread(file.fileno(), size, offset)
    except OSError:
        return b""


def whole_pages(path: Path, ids: Sequence[bytes], page_bytes: int) -> list[bool]:
    """Which pages of a page file have these ids; none if its frame is another one or it can't be read."""
    try:
        start = page_file.check(path, len(ids), page_bytes)
        with open_regular(path) as file:
            hashes = page_file.PageHashes(file.fileno(), page_bytes)
            return [hashes.at(start + number * page_bytes) == digest for number, digest in enumerate(ids)]
    except (BundleError, OSError):
        return [False] * len(ids)

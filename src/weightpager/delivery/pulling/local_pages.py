"""Pages, and files, that a device has: in the bundles beside the new one, and in what broken pulls have left."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
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
from weightpager.delivery.version_file import VersionFile
from weightpager.errors import BundleError, DeliveryError


@dataclass(frozen=True)
class LocalBundle:
    """A bundle that may be damaged: nothing of it counts before its hash has been compared.

    Attributes:
        root: bundle directory.
        manifest: what it should hold.
        ids: uint8 [pages, 32] of its pages.
        version: what it was pulled as; None if it came otherwise.
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
    found: dict[str, LocalBundle] = {}
    for root in _roots(into):
        path = os.path.realpath(root)
        if path not in found:
            try:
                manifest = read_manifest(root)
                ids = read_page_index(root, manifest).ids
            except BundleError:
                continue
            found[path] = LocalBundle(Path(path), manifest, ids, _version(Path(path)))
    return list(found.values())


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


class LocalPages:
    """Where pages of certain ids lie on this device."""

    def __init__(self, bundles: Iterable[LocalBundle], wanted: Iterable[bytes], page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self._places: dict[bytes, list[tuple[Path, int]]] = {digest: [] for digest in wanted}
        for bundle in bundles:
            if bundle.manifest.page_bytes == page_bytes:
                self._list(bundle)

    def _list(self, bundle: LocalBundle) -> None:
        for path, ids in bundle.page_files():
            start = len(page_file.header(len(ids), self._page_bytes))
            for place, row in enumerate(ids):
                places = self._places.get(row.tobytes())
                if places is not None:
                    places.append((path, start + place * self._page_bytes))

    def knows(self, digest: bytes) -> bool:
        """Whether a page should be here; only `page` compares its bytes."""
        return bool(self._places.get(digest))

    def page(self, digest: bytes) -> bytes | None:
        """A page's bytes, checked; None if there is none that is whole."""
        for path, offset in self._places.get(digest, ()):
            content = _read(path, offset, self._page_bytes)
            if blake3(content).digest() == digest:
                return content
        return None


def _read(path: Path, offset: int, size: int) -> bytes:
    """Bytes of a file; fewer where they can't be read."""
    try:
        with open_regular(path) as file:
            return os.pread(file.fileno(), size, offset)
    except OSError:
        return b""


class LocalPieces:
    """Where pieces of files lie on this device, by their hashes."""

    def __init__(self, bundles: Iterable[LocalBundle]) -> None:
        self._places: dict[str, tuple[Path, int, int]] = {}
        for bundle in bundles:
            for name, file in (bundle.version.files if bundle.version is not None else {}).items():
                for start, piece in file.starts():
                    if piece.blake3 is not None:
                        self._places[piece.blake3] = bundle.root / name, start, piece.bytes

    def piece(self, digest: str) -> bytes | None:
        """A piece's bytes, checked; None if there is none that is whole."""
        if digest not in self._places:
            return None
        content = _read(*self._places[digest])
        return content if blake3(content).hexdigest() == digest else None

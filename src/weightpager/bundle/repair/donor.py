"""`Donor`: another bundle, from which a damaged one takes what it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from blake3 import blake3

from weightpager.bundle.files.entry import FileEntry, open_entry
from weightpager.bundle.files.regular_file import open_regular
from weightpager.bundle.format import page_file
from weightpager.bundle.reader import read_manifest, read_page_index
from weightpager.errors import BundleError, BundleFormatError

_PIECE = 1 << 20


class Donor:
    """Another bundle, which may be damaged too: nothing from it counts before its hash has been compared.

    Pages are found by id, whatever their number is there. A donor whose manifest or page index is damaged may still be
    a copy of the damaged bundle, so that a page is also looked for where that bundle has it.

    Attributes:
        root: bundle directory.
        problem: why its pages can't be found by id; None if they can.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._places: dict[bytes, list[tuple[str, int]]] = {}  # id → (page file, offset)
        self.problem: BundleError | None = None
        try:
            self._list_pages()
        except BundleError as error:
            self.problem = error

    def page(self, digest: bytes, size: int, name: str, offset: int) -> bytes:
        """The page of this id, its bytes checked.

        Args:
            digest: its id.
            size: bytes of a page.
            name: the page file that holds it in the damaged bundle.
            offset: where in that file.

        Raises:
            BundleError: there is none that is whole.
        """
        return self._page(digest, size, [(name, offset)])

    def page_by_id(self, digest: bytes, size: int) -> bytes:
        """The page of this id, its bytes checked, from where the donor's own index has it.

        Args:
            digest: its id.
            size: bytes of a page.

        Raises:
            BundleError: there is none that is whole.
        """
        return self._page(digest, size, [])

    def _page(self, digest: bytes, size: int, others: Sequence[tuple[str, int]]) -> bytes:
        """The page of this id, from where it is listed or from other places that may have it."""
        listed = self._places.get(digest, [])
        for place in dict.fromkeys([*listed, *others]):
            content = self._read(*place, size)
            if blake3(content).digest() == digest:
                return content
        if listed:
            raise BundleError(f"{self.root} has it in {listed[0][0]}, damaged or unreadable too")
        nowhere = "has no page of this id" if self.problem is None else "does not have it in the same place"
        raise BundleError(f"{self.root} {nowhere}")

    def copy(self, name: str, entry: FileEntry, target: IO[bytes]) -> None:
        """Write the file ``name`` to ``target``. The content is known to be right only once this has returned.

        Raises:
            BundleFormatError: there is none that is what ``entry`` says.
            OSError: the target can't be written.
        """
        digest = blake3()
        for piece in self._pieces(name, entry):
            target.write(piece)
            digest.update(piece)
        if digest.hexdigest() != entry.blake3:
            raise BundleFormatError(name, "BLAKE3", entry.blake3, digest.hexdigest())

    def _pieces(self, name: str, entry: FileEntry) -> Iterator[bytes]:
        with open_entry(self.root, name, entry) as file:
            while piece := file.read(_PIECE):
                yield piece

    def _read(self, name: str, offset: int, size: int) -> bytes:
        """A page's bytes; fewer where they can't be read."""
        try:
            with open_regular(self.root / name) as file:
                file.seek(offset)
                return file.read(size)
        except OSError:
            return b""

    def _list_pages(self) -> None:
        manifest = read_manifest(self.root)
        pages = read_page_index(self.root, manifest)
        for name, first, count in manifest.page_ranges():
            start = len(page_file.header(count, manifest.page_bytes))
            for place, digest in enumerate(pages.ids[first : first + count]):
                self._places.setdefault(digest.tobytes(), []).append((name, start + place * manifest.page_bytes))

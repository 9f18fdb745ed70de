"""`PackStore`: the pages that a repository has, and packs for those that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from weightpager.delivery.names import PACKS, pack_ids_path, pack_path
from weightpager.delivery.packs import ID_BYTES, PACK_BYTES, pack_name
from weightpager.delivery.publishing.written_file import write_file
from weightpager.delivery.version_file import Pack, PageRun
from weightpager.errors import DeliveryError

Place = tuple[str, int]
"""A pack's name, and a page's place in it."""


class PackStore:
    """Packs of one page size. A pack is complete when its file of ids is there, which is written last."""

    def __init__(self, repository: Path, page_bytes: int) -> None:
        self._repository = repository
        self._page_bytes = page_bytes
        self._pages: dict[str, int] = {}
        self._places: dict[bytes, Place] = {}
        for path in sorted((repository / PACKS).glob("*.ids")):
            self._know(path.stem, path.read_bytes())

    def lacking(self, ids: Iterable[bytes]) -> list[int]:
        """Indices of the pages that no pack has, each id once."""
        seen: set[bytes] = set()
        return [at for at, digest in enumerate(ids) if digest not in self._places and not _seen(digest, seen)]

    def add(self, ids: Sequence[bytes], page: Callable[[int], bytes], wanted: Sequence[int]) -> int:
        """Write packs of these pages.

        Args:
            ids: of all pages of the bundle.
            page: a page's bytes by its index, checked.
            wanted: indices.

        Returns:
            Bytes that were written.
        """
        most = max(1, PACK_BYTES // self._page_bytes)
        for start in range(0, len(wanted), most):
            part = wanted[start : start + most]
            listed = b"".join(ids[index] for index in part)
            name = pack_name(self._page_bytes, listed)
            write_file(self._repository / pack_path(name), (page(index) for index in part))
            write_file(self._repository / pack_ids_path(name), [listed])
            self._know(name, listed)
        return len(wanted) * self._page_bytes

    def located(self, ids: Iterable[bytes]) -> tuple[list[Pack], list[PageRun]]:
        """The packs that hold these pages, and the runs in them that make the bundle, in order."""
        places = [self._places[digest] for digest in ids]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in places))}
        runs = [PageRun(pack=numbers[name], first=first, pages=count) for name, first, count in _runs(places)]
        return [Pack(blake3=name, pages=self._pages[name]) for name in numbers], runs

    def _know(self, name: str, listed: bytes) -> None:
        if pack_name(self._page_bytes, listed) != name:
            return  # of pages of another size
        pages, path = len(listed) // ID_BYTES, self._repository / pack_path(name)
        try:
            size = path.stat().st_size
        except OSError:
            size = -1
        if size != pages * self._page_bytes:
            raise DeliveryError(
                f"{path}: expected {pages} pages of {self._page_bytes} bytes, found {max(size, 0)} bytes; "
                "bring the pack back from a copy of the repository"
            )
        self._pages[name] = pages
        for place in range(pages):
            self._places.setdefault(listed[place * ID_BYTES : (place + 1) * ID_BYTES], (name, place))


def _seen(digest: bytes, seen: set[bytes]) -> bool:
    """Whether a digest was among those seen; it is added to them."""
    before = digest in seen
    seen.add(digest)
    return before


def _runs(places: Sequence[Place]) -> Iterator[tuple[str, int, int]]:
    """Pages that follow each other in a pack: its name, the first place, how many."""
    for (name, _), group in groupby(enumerate(places), key=lambda each: (each[1][0], each[1][1] - each[0])):
        members = [place for _, (_, place) in group]
        yield name, members[0], len(members)

"""Publishing a bundle: what the repository lacks of it is added, then a signed state names it."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from blake3 import blake3

from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.files.entry import FileEntry, hash_file, open_entry
from weightpager.bundle.format import page_file
from weightpager.bundle.format.names import MANIFEST, MANIFEST_HASH
from weightpager.bundle.reader import read_manifest
from weightpager.bundle.repair import Donor
from weightpager.delivery.pieces import ID_BYTES, PACK_BYTES, pack_name, spans, stored
from weightpager.delivery.publishing.repository import alone
from weightpager.delivery.publishing.roles import Roles, storage_errors, write_file
from weightpager.delivery.version_file import (
    PACKS,
    Pack,
    PackRun,
    StoredFile,
    StoredPiece,
    VersionFile,
    channel_target,
    object_path,
    pack_ids_path,
    pack_path,
    version_target,
)
from weightpager.errors import BundleError, ConfigError, DeliveryError
from weightpager.progress import Progress, silent

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
        """Write packs of the ``wanted`` pages, by their indices among ``ids``; the bytes that were written.

        ``page`` gives a page's bytes by its index, checked.
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

    def located(self, ids: Iterable[bytes]) -> tuple[list[Pack], list[PackRun]]:
        """The packs that hold these pages, and the runs in them that make the bundle, in order."""
        places = [self._places[digest] for digest in ids]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in places))}
        runs = [PackRun(pack=numbers[name], first=first, pages=count) for name, first, count in _runs(places)]
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


@dataclass(frozen=True)
class Published:
    """What publishing a bundle has added.

    Attributes:
        version: the version that devices of the channel get now.
        pages, page_bytes: number of pages that no pack had, and their bytes.
        pages_in_all: number of the bundle's pages.
        file_bytes: bytes of other files, as stored.
    """

    name: str
    version: str
    channel: str
    pages: int
    pages_in_all: int
    page_bytes: int
    file_bytes: int


def publish(
    path: Path,
    repository: Path,
    key_folder: Path,
    name: str,
    channel: str,
    version: str | None = None,
    progress: Progress = silent,
) -> Published:
    """Add a bundle, of which every byte is checked first, to a repository, and let a channel point to it.

    A ``version`` of None is the one under which this bundle is there already, or the next number.

    Raises:
        BundleError: the bundle is damaged, or changed meanwhile.
        ConfigError: the version exists and is another bundle, or a key of targets, snapshot or timestamp is missing.
        DeliveryError: the repository can't be read or written.
    """
    problems = verify(path, lambda done, total: progress("check the bundle", done, total)).problems
    if problems:
        raise BundleError(f"{path}: expected a whole bundle to publish, found damage: {problems[0]}")
    with alone(repository):
        roles = Roles(repository, key_folder)
        return _Publishing(Bundle.open(path), repository, roles, progress).publish(name, channel, version)


class _Publishing:
    """One bundle on its way into a repository."""

    def __init__(self, bundle: Bundle, repository: Path, roles: Roles, progress: Progress) -> None:
        self._bundle = bundle
        self._repository = repository
        self._roles = roles
        self._progress = progress
        self._file_bytes = 0

    def publish(self, name: str, channel: str, version: str | None) -> Published:
        """Write packs and objects, which nobody refers to yet, then the targets."""
        self._roles.check_keys("targets", "snapshot", "timestamp")  # before a large bundle is written in vain
        manifest = self._bundle.manifest
        ids = [row.tobytes() for row in self._bundle.index.ids]
        store = PackStore(self._repository, manifest.page_bytes)
        wanted = store.lacking(ids)
        page_bytes = store.add(ids, self._reader(ids, len(wanted)), wanted)
        packs, runs = store.located(ids)
        files = {file: self._stored(file) for file in sorted({*manifest.files, MANIFEST, MANIFEST_HASH})}
        if read_manifest(self._bundle.path) != manifest:
            raise self._changed(MANIFEST)
        made = VersionFile(
            format="weightpager-version-1",
            name=name,
            version=version or self._known(name, files[MANIFEST]) or self._next(name),
            page_bytes=manifest.page_bytes,
            page_files=manifest.page_files,
            row_files=manifest.row_files,
            packs=packs,
            runs=runs,
            files=files,
        )
        self._sign(made, channel)
        return Published(name, made.version, channel, len(wanted), len(ids), page_bytes, self._file_bytes)

    def _sign(self, made: VersionFile, channel: str) -> None:
        content, target = made.dump(), version_target(made.name, made.version)
        before = self._roles.target(target)
        if before is not None and VersionFile.parse(before).key != made.key:
            raise ConfigError(
                f"version: expected one that {made.name} doesn't have yet, found {made.version!r}, which is another "
                "bundle"
            )
        # The first one stays: devices may be on their way with it. Its packs are still there.
        kept = content if before is None else before
        changed = {target: kept, channel_target(made.name, channel): kept}
        self._roles.set_targets({path: text for path, text in changed.items() if self._roles.target(path) != text})

    def _known(self, name: str, manifest: StoredFile) -> str | None:
        """The newest version with this very manifest, if there is one."""
        for version in sorted(self._versions(name), key=_number, reverse=True):
            stored_version = VersionFile.parse(self._roles.content(version_target(name, version)))
            if stored_version.files[MANIFEST].blake3 == manifest.blake3:
                return version
        return None

    def _next(self, name: str) -> str:
        return str(1 + max(map(_number, self._versions(name)), default=0))

    def _versions(self, name: str) -> list[str]:
        """A bundle's versions that the repository has."""
        prefix = version_target(name, "").removesuffix(".json")
        targets = (path for path in self._roles.targets.targets if path.startswith(prefix))
        return [path.removeprefix(prefix).removesuffix(".json") for path in targets]

    def _reader(self, ids: Sequence[bytes], wanted: int) -> Callable[[int], bytes]:
        donor, size, count = Donor(self._bundle.path), self._bundle.page_bytes, itertools.count(1)

        def page(index: int) -> bytes:
            self._progress("write pages", next(count), wanted)
            return donor.page(ids[index], size)

        return page

    def _stored(self, name: str) -> StoredFile:
        entry, digest = self._entry(name), blake3()
        pieces: list[StoredPiece] = []
        if entry.bytes:
            ids_of = "ids" if name == page_file.FILE else None
            with (
                open_entry(self._bundle.path, name, entry) as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                for span in spans(content, ids_of):
                    raw = content[span.start : span.end]
                    digest.update(raw)
                    pieces.append(StoredPiece(blake3=None, bytes=len(raw), stored=0) if span.ids else self._piece(raw))
        if digest.hexdigest() != entry.blake3:
            raise self._changed(name)
        return StoredFile(bytes=entry.bytes, blake3=entry.blake3, pieces=pieces)

    def _entry(self, name: str) -> FileEntry:
        if name not in (MANIFEST, MANIFEST_HASH):
            return self._bundle.entry(name)
        try:
            return hash_file(self._bundle.path / name)
        except OSError as error:
            raise self._changed(name) from error

    def _changed(self, name: str) -> BundleError:
        return BundleError(f"{self._bundle.path}: {name} changed while it was published; publish it again")

    def _piece(self, raw: bytes) -> StoredPiece:
        name = blake3(raw).hexdigest()
        path = self._repository / object_path(name)
        with storage_errors():
            there = path.read_bytes() if path.exists() else None
        piece, kept = stored(name, raw, there)
        if kept != there:
            write_file(path, [kept])
            self._file_bytes += piece.stored
        return piece


def _number(version: str) -> int:
    """A version that is called by a number; 0 for any other."""
    return int(version) if version.isascii() and version.isdigit() else 0

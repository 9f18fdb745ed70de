"""`Fetch`: puts a version together, by its plan, from what is here and what the repository has."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from weightpager.backends.verify import verify
from weightpager.bundle.files.entry import FileEntry, check_file
from weightpager.bundle.files.new_file import new_file
from weightpager.bundle.reader import read_manifest
from weightpager.delivery.pieces import ID_BYTES, pack_name
from weightpager.delivery.pulling.assembly import Assembly, Planner
from weightpager.delivery.pulling.installed import Places, write_errors
from weightpager.delivery.pulling.local_parts import LocalParts, local_bundles, whole_pages
from weightpager.delivery.pulling.plan import Cost, PackRequest, PullPlan, pack_requests
from weightpager.delivery.pulling.transfers import PageTransfer, PieceTransfer, Transfer, bring
from weightpager.delivery.sources import Source, read_at_most
from weightpager.delivery.version_file import HEADS, StoredPiece, VersionFile, pack_ids_path
from weightpager.errors import BundleError, DeliveryError, UntrustedError
from weightpager.progress import Progress, StepProgress


class Pages(Protocol):
    """Takes pages of a version."""

    def put(self, page: int, content: bytes) -> None: ...

    def close(self) -> None:
        """End; nothing is put afterwards."""


class Target(Protocol):
    """Takes parts of a version: an `Assembly`, or `Nowhere`."""

    def missing_pieces(self, name: str) -> Iterable[StoredPiece]:
        """Pieces of a file that it hasn't."""

    def copy_file(self, name: str, original: Path) -> bool:
        """Take a file, and return whether it was the right one."""

    def link_page_file(self, name: str, original: Path) -> bool:
        """Take a page file, whose pages are right, as a hard link, and return whether the storage could."""

    def put_piece(self, piece: StoredPiece, content: bytes) -> None: ...

    def page_writer(self) -> Pages:
        """What takes pages; to be closed."""


class Nowhere:
    """Compares with hashes and writes nothing, for a dry run. Implements `Target` and `Pages`."""

    def __init__(self, version: VersionFile) -> None:
        self._version = version

    def missing_pieces(self, name: str) -> list[StoredPiece]:
        return [piece for piece in self._version.files[name].pieces if piece.blake3 is not None]

    def copy_file(self, name: str, original: Path) -> bool:
        wanted = self._version.files[name]
        try:
            check_file(original.parent, original.name, FileEntry(bytes=wanted.bytes, blake3=wanted.blake3))
        except BundleError:
            return False
        return True

    def link_page_file(self, name: str, original: Path) -> bool:  # noqa: ARG002
        return True

    def put_piece(self, piece: StoredPiece, content: bytes) -> None: ...

    def page_writer(self) -> Nowhere:
        return self

    def put(self, page: int, content: bytes) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class LocalCopy:
    """Brings parts of a version from bundles on this device, which may be damaged, or pruned meanwhile."""

    ids: Sequence[bytes]
    local: LocalParts
    target: Target

    def carry_out(self, plan: PullPlan, progress: StepProgress) -> PullPlan:
        """Link and copy as planned; progress is told (pages copied, pages to copy).

        Returns:
            The plan in which all that turned out damaged or gone is fetched.
        """
        pieces = [*plan.copy_pieces, *self._copy_files(plan)]
        pages = sorted([*plan.copy_pages, *self._link_page_files(plan)])
        return plan.fetching(self._copy_pages(pages, progress), self._copy_pieces(pieces))

    def _copy_files(self, plan: PullPlan) -> list[StoredPiece]:
        """Copy whole files. Returns the pieces of those that couldn't be copied."""
        left: list[StoredPiece] = []
        for name, original in plan.copy_files.items():
            if not self.target.copy_file(name, original):
                left += self.target.missing_pieces(name)
        return left

    def _copy_pieces(self, pieces: Iterable[StoredPiece]) -> list[StoredPiece]:
        """Copy pieces of files. Returns those that couldn't be copied."""
        left: list[StoredPiece] = []
        for piece in pieces:
            content = self.local.piece(str(piece.blake3))
            if content is None:
                left.append(piece)
            else:
                self.target.put_piece(piece, content)
        return left

    def _link_page_files(self, plan: PullPlan) -> list[int]:
        """Link page files. Returns the pages of those that couldn't be linked."""
        left: list[int] = []
        for name, pages in plan.version.page_ranges():
            original = plan.link_files.get(name)
            if original is not None and not self._link(name, pages, original, plan.version.page_bytes):
                left += pages
        return left

    def _link(self, name: str, pages: range, original: Path, page_bytes: int) -> bool:
        ids = [self.ids[page] for page in pages]
        return all(whole_pages(original, ids, page_bytes)) and self.target.link_page_file(name, original)

    def _copy_pages(self, pages: Sequence[int], progress: StepProgress) -> list[int]:
        """Copy pages. Returns those that couldn't be copied."""
        left: list[int] = []
        with closing(self.target.page_writer()) as writer:
            for done, page in enumerate(pages, 1):
                content = self.local.page(self.ids[page])
                if content is None:
                    left.append(page)
                else:
                    writer.put(page, content)
                progress(done, len(pages))
        return left


_SPARE = 16 << 20
"""Bytes that must stay free on the device's storage."""


class Fetch:
    """One version on its way to a device."""

    def __init__(
        self, source: Source, into: Path, places: Places, version: VersionFile, connections: int, progress: Progress
    ) -> None:
        """Learn the ids of the wanted version's pages, and what is in the device's directory ``into``.

        Raises:
            DeliveryError: ids can't be fetched.
        """
        self._source = source
        self._version = version
        self._connections = connections
        self._progress = progress
        self._into = into
        self._ids = _ids(source, places.ids, version)
        self._assembly = Assembly(places.partial / version.key, version, self._ids)
        self._local = LocalParts(local_bundles(into), self._ids, version.page_bytes, self._assembly.bundle)
        self._lock = threading.Lock()

    def cost(self) -> Cost:
        """What `run` would fetch. What is here is compared with its hashes, and nothing is written."""
        return self._assemble_local(self._plan(), Nowhere(self._version)).cost()

    def run(self) -> Cost:
        """Put the bundle together, check every byte of it, and say what came. What has come stays for the next try.

        Raises:
            DeliveryError: something can't be fetched or written.
            UntrustedError: the bundle isn't what its version file says, though its parts are.
        """
        plan = self._plan()
        self._check_room(plan)
        self._assembly.begin()
        plan = self._assemble_local(plan, self._assembly)
        self._fetch(plan)
        self._check()
        return plan.cost()

    @property
    def folder(self) -> Path:
        """Where the bundle is put together."""
        return self._assembly.folder

    @property
    def _wanted(self) -> str:
        return f"{self._version.name} {self._version.version}"

    def _told(self, stage: str) -> _StageProgress:
        return _StageProgress(self._progress, stage)

    def _plan(self) -> PullPlan:
        planner = Planner(self._version, self._ids, self._local, self._assembly)
        return planner.plan(self._told("look for pages that are here"))

    def _assemble_local(self, plan: PullPlan, target: Target) -> PullPlan:
        """Bring what is here to a target. Returns the plan of what is left."""
        return LocalCopy(self._ids, self._local, target).carry_out(plan, self._told("copy pages that are here"))

    def _check_room(self, plan: PullPlan) -> None:
        free, needed = shutil.disk_usage(self._into).free, plan.new_bytes + _SPARE
        if free < needed:
            raise DeliveryError(
                f"{self._into}: expected {needed} bytes free for {self._wanted}, found {free}; make room, or "
                "keep fewer versions (--keep). The bundle in use stays"
            )

    def _check(self) -> None:
        """Compare the manifest with what was signed, and by its hashes all other files.

        Raises:
            UntrustedError: they differ. What has come stays: the next try finds what is wrong, and fetches only that.
        """
        for name in HEADS:
            if not self._assembly.is_whole(name):
                raise UntrustedError(f"{name}: expected the file that was signed, found pieces that don't make it")
        self._version.check_manifest(read_manifest(self._assembly.bundle))
        problems = verify(self._assembly.bundle, self._told("verify")).problems
        if problems:
            raise UntrustedError(f"{self._wanted}: expected a whole bundle, found damage: {problems[0]}")

    def _fetch(self, plan: PullPlan) -> None:
        """Fetch pieces of files, and pages."""
        size, wanted, pieces = self._version.page_bytes, plan.fetch_places(), plan.fetch_pieces
        told, writer = self._told("fetch (bytes)"), self._assembly.page_writer()
        total = len(wanted) * size + sum(piece.stored for piece in pieces)

        def piece_landed(piece: StoredPiece, content: bytes) -> None:
            with self._lock:
                self._assembly.put_piece(piece, content)
                told.add(piece.stored, total)

        def page_landed(pack: int, place: int, content: bytearray) -> None:
            for page in wanted[pack, place]:
                writer.put(page, content)
            with self._lock:
                told.add(size, total)

        def transfer(request: PackRequest) -> PageTransfer:
            ids = {place: self._ids[wanted[request.pack, place][0]] for place in request.pages}
            pack = self._version.packs[request.pack].blake3
            return PageTransfer(self._source, pack, request, ids, size, page_landed)

        requests = list(pack_requests(wanted, size))
        first: list[Transfer] = [PieceTransfer(self._source, piece, piece_landed) for piece in pieces]
        try:
            bring([*first, *map(transfer, requests[:1])], self._connections)
            rest = requests[1:]
            if self._source.whole_files:  # it gives no parts: one request for each pack, not one for each part
                rest = _whole_packs(rest)
            bring(map(transfer, rest), self._connections)
        finally:
            writer.close()


class _StageProgress:
    """Progress of one stage, as steps done or as steps added."""

    def __init__(self, progress: Progress, stage: str) -> None:
        self._progress = progress
        self._stage = stage
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        self._progress(self._stage, done, total)

    def add(self, steps: int, total: int) -> None:
        """Tell that so many steps more are done."""
        self._done += steps
        self(self._done, total)


def _whole_packs(requests: Iterable[PackRequest]) -> list[PackRequest]:
    """One request to each pack."""
    pages: dict[int, list[int]] = {}
    for request in requests:
        pages.setdefault(request.pack, []).extend(request.pages)
    return [PackRequest(pack, tuple(sorted(of_pack))) for pack, of_pack in pages.items()]


def _ids(source: Source, folder: Path, version: VersionFile) -> list[bytes]:
    """The ids of a version's pages. Those of a pack are fetched once: its name vouches for them."""
    listed = [_pack_ids(source, folder, pack.blake3, pack.pages, version.page_bytes) for pack in version.packs]
    with write_errors():
        for path in folder.glob("*"):
            if path.name not in {pack.blake3 for pack in version.packs}:
                path.unlink()
    return [listed[pack][place * ID_BYTES : (place + 1) * ID_BYTES] for pack, place in version.places()]


def _pack_ids(source: Source, folder: Path, name: str, pages: int, page_bytes: int) -> bytes:
    path = folder / name
    try:
        known = path.read_bytes()
    except OSError:
        known = b""
    if pack_name(page_bytes, known) == name:
        return known
    fetched = read_at_most(source, pack_ids_path(name), pages * ID_BYTES)
    if len(fetched) != pages * ID_BYTES or pack_name(page_bytes, fetched) != name:
        raise UntrustedError(f"{source.place}/{pack_ids_path(name)}: expected the ids that were signed, found others")
    with write_errors():
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(path) as file:
            file.write(fetched)
    return fetched

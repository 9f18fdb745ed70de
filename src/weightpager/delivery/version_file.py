"""``VERSION.json``: what one version of a bundle is made of, and where in a repository each part lies.

Its hash is in signed metadata, and it is all that is signed of a version: its hashes vouch for files, these for pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from weightpager.bundle.files.entry import Hash
from weightpager.bundle.files.strict import Strict
from weightpager.bundle.format import page_file
from weightpager.bundle.format.manifest import Count, Manifest
from weightpager.bundle.format.names import MANIFEST, MANIFEST_HASH, is_inside
from weightpager.bundle.format.page_file import ALIGNMENT
from weightpager.errors import BundleFormatError, ConfigError, UntrustedError

PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,63}\Z"
Name = Annotated[str, Meta(pattern=PATTERN)]
"""The name of a bundle, a version or a channel."""

METADATA, TARGETS, PACKS, OBJECTS = "metadata", "targets", "packs", "objects"
"""Folders of a repository."""


def checked_name(what: str, name: str) -> str:
    """A name that somebody has typed. Raises `ConfigError` if it can't be one."""
    if re.match(PATTERN, name) is None:
        expected = "up to 64 small letters, digits, '-', '_' and '.', beginning with a letter or digit"
        raise ConfigError(f"{what}: expected {expected}, found {name[:80]!r}")
    return name


def version_target(name: str, version: str) -> str:
    """The target that says what a version is made of."""
    return f"{name}/versions/{version}.json"


def channel_target(name: str, channel: str) -> str:
    """The target that holds the version file of a channel's current version."""
    return f"{name}/channels/{channel}.json"


def pack_path(pack: str) -> str:
    """Where a pack's pages lie, one after the other."""
    return f"{PACKS}/{pack}.pack"


def pack_ids_path(pack: str) -> str:
    """Where the ids of a pack's pages lie, 32 bytes each."""
    return f"{PACKS}/{pack}.ids"


def object_path(digest: str) -> str:
    """Where a piece of a file lies."""
    return f"{OBJECTS}/{digest}"


PIECE_BYTES = 4 << 20
"""A piece is at most so large, so that a device holds little in memory, and goes on in the middle of a large file."""

HEADS = (MANIFEST, MANIFEST_HASH)
"""The manifest and its hash. The manifest lists every other file of `VersionFile.files`."""


class StoredPiece(Strict, frozen=True, kw_only=True):
    """A part of a file.

    Attributes:
        blake3: hash of its bytes, by which it is found; None for the ids of pages, which packs have.
        bytes: number of its bytes in the file.
        stored: bytes in the repository; fewer than ``bytes`` if it is compressed by zlib.
    """

    blake3: Hash | None
    bytes: Annotated[int, Meta(ge=1, lt=2**40)]
    stored: Annotated[int, Meta(ge=0, le=PIECE_BYTES)]

    def __post_init__(self) -> None:
        if self.blake3 is not None and not 0 < self.stored <= self.bytes <= PIECE_BYTES:
            raise ValueError(f"a piece of at most {PIECE_BYTES} bytes, stored in no more, got {self.bytes}")


class StoredFile(Strict, frozen=True, kw_only=True):
    """A file of the bundle: its size, its BLAKE3, and the pieces that make it, in order."""

    bytes: Annotated[int, Meta(ge=0, lt=2**48)]
    blake3: Hash
    pieces: list[StoredPiece]

    def __post_init__(self) -> None:
        if sum(piece.bytes for piece in self.pieces) != self.bytes:
            raise ValueError(f"pieces of {self.bytes} bytes together")

    def starts(self) -> Iterator[tuple[int, StoredPiece]]:
        """Where each piece begins in the file, and the piece."""
        start = 0
        for piece in self.pieces:
            yield start, piece
            start += piece.bytes


class Pack(Strict, frozen=True, kw_only=True):
    """A file of pages: its name, which is the hash of its pages' size and ids, and how many pages it has."""

    blake3: Hash
    pages: Annotated[int, Meta(ge=1, lt=2**31)]


class PackRun(Strict, frozen=True, kw_only=True):
    """Pages of the bundle that follow each other in a pack: which pack, its first page of them, how many."""

    pack: Count
    first: Count
    pages: Annotated[int, Meta(ge=1, lt=2**31)]


class VersionFile(Strict, frozen=True, kw_only=True):
    """One version of a bundle."""

    format: Literal["weightpager-version-1"]
    name: Name
    version: Name
    page_bytes: Annotated[int, Meta(ge=ALIGNMENT, le=2**28, multiple_of=ALIGNMENT)]
    page_files: Annotated[list[Count], Meta(max_length=10_000)]
    row_files: Annotated[list[Count], Meta(max_length=10_000)]
    packs: Annotated[list[Pack], Meta(max_length=100_000)]
    runs: list[PackRun]
    files: dict[str, StoredFile]

    def __post_init__(self) -> None:
        if self.pages != sum(run.pages for run in self.runs):
            raise ValueError(f"runs of {self.pages} pages together")
        for run in self.runs:
            if run.pack >= len(self.packs) or run.first + run.pages > self.packs[run.pack].pages:
                raise ValueError("runs inside the packs that are listed")
        for name, file in self.files.items():
            if not is_inside(name) or name.startswith(("pages-", "rows-")):
                raise ValueError(f"a file inside the bundle that is no page file, got {name!r}")
            ids = [piece.bytes for piece in file.pieces if piece.blake3 is None]
            if ids != ([32 * self.pages] if name == page_file.FILE and self.pages else []):
                raise ValueError(f"ids of all pages, once and in {page_file.FILE}")
        missing = {MANIFEST, MANIFEST_HASH, page_file.FILE} - self.files.keys()
        if missing:
            raise ValueError(f"an entry for {sorted(missing)[0]}")

    @property
    def pages(self) -> int:
        """Pages of blocks and of rows."""
        return sum(self.page_files) + sum(self.row_files)

    @property
    def file_bytes(self) -> int:
        """Bytes of all files but page files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def key(self) -> str:
        """The version's name on a device, which no two versions share, whatever repositories call them."""
        return f"{self.version}-{self.files[MANIFEST].blake3[:16]}"

    @staticmethod
    def name_of(key: str) -> str:
        """The name of the version that has this key."""
        return key.rpartition("-")[0]

    def page_ranges(self) -> Iterator[tuple[str, range]]:
        """Name of each page file, and the numbers of its pages."""
        for name, first, count in page_file.page_ranges(self.page_files, self.row_files):
            yield name, range(first, first + count)

    def places(self) -> Iterator[tuple[int, int]]:
        """The number of each page's pack, and its place in that, in bundle order."""
        for run in self.runs:
            for place in range(run.first, run.first + run.pages):
                yield run.pack, place

    def check_manifest(self, manifest: Manifest) -> None:
        """Compare with what the bundle's own manifest says."""
        ours = (self.page_bytes, self.page_files, self.row_files)
        listed = {name: (file.bytes, file.blake3) for name, file in self.files.items() if name not in HEADS}
        if ours != (manifest.page_bytes, manifest.page_files, manifest.row_files) or listed != {
            name: (entry.bytes, entry.blake3) for name, entry in manifest.files.items()
        }:
            raise UntrustedError(
                f"{self.name} {self.version}: expected the files that its {MANIFEST} lists, found others; publish it "
                "again"
            )

    @classmethod
    def parse(cls, text: bytes) -> VersionFile:
        """Validate a version file's JSON. Raises `UntrustedError`, which names the first field that is wrong."""
        try:
            return cls.read("version file", text)
        except BundleFormatError as error:
            raise UntrustedError(f"{error}; a newer weightpager may read it, or publish the version again") from error

    def dump(self) -> bytes:
        """Canonical JSON that `parse` reads: the same version gives the same bytes."""
        return msgspec.json.encode(self, order="sorted") + b"\n"

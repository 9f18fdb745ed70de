"""Where files are cut into pieces, so that two versions of a file share most of them.

A safetensors file is cut where large tensors begin and end: a tensor that stays is a piece that stays,
wherever it lies.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

from blake3 import blake3

from weightpager.delivery.version_file import PIECE_BYTES, StoredPiece

_LARGE = 16 << 10
"""Bytes of a tensor that is worth a piece, and a request, of its own."""

_LARGEST = 7 / 8
"""Of its bytes, what a piece may have left once it is compressed."""

_SAMPLE = 64 << 10
"""Bytes at a piece's start that tell whether to compress it: to try all takes a minute for 1.5 GB."""


@dataclass(frozen=True)
class Span:
    """Bytes ``start`` to ``end`` of a file; ``ids`` if they are the ids of pages."""

    start: int
    end: int
    ids: bool = False


def spans(content: bytes | mmap, ids_of: str | None = None) -> list[Span]:
    """Where a file is cut, in order and without gaps; ``ids_of`` names the tensor that holds ids of pages."""
    tensors = _tensors(content) if content[8:9] == b"{" else {}
    cuts = {0, len(content)}
    for start, end in tensors.values():
        if end - start >= _LARGE:
            cuts |= {start, end}
    ids = tensors.get(ids_of) if ids_of is not None else None
    if ids is not None:
        cuts |= set(ids)
    ordered = sorted(cuts)
    return [span for pair in itertools.pairwise(ordered) for span in _span(*pair, ids)]


def _span(start: int, end: int, ids: tuple[int, int] | None) -> Iterator[Span]:
    if (start, end) == ids:
        yield Span(start, end, ids=True)
        return
    for at in range(start, end, PIECE_BYTES):
        yield Span(at, min(end, at + PIECE_BYTES))


def _tensors(content: bytes | mmap) -> dict[str, tuple[int, int]]:
    """Where each tensor that has bytes lies in the file; nothing if this is no safetensors file."""
    first = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:first])
        offsets = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        return {
            name: (first + start, first + end)
            for name, (start, end) in offsets.items()
            if type(start) is type(end) is int and 0 <= start < end <= len(content) - first
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def stored(name: str, raw: bytes, there: bytes | None = None) -> tuple[StoredPiece, bytes]:
    """A piece, and its bytes as the repository has them: compressed where that saves an eighth.

    Weights save a twentieth. A device fetches that sooner than it decompresses the rest.

    Args:
        name: the BLAKE3 of ``raw``.
        raw: bytes of the piece.
        there: what the repository has under this piece's name. It is kept if it makes these bytes, since older
            versions state its size.
    """
    if there is not None and 0 < len(there) <= len(raw):
        piece = StoredPiece(blake3=name, bytes=len(raw), stored=len(there))
        if restored(piece, there) == raw:
            return piece, there
    kept = _packed(raw)
    return StoredPiece(blake3=name, bytes=len(raw), stored=len(kept)), kept


def _packed(raw: bytes) -> bytes:
    if not _saves(raw[:_SAMPLE], zlib.compress(raw[:_SAMPLE], 1)):
        return raw
    packed = zlib.compress(raw, 9)
    return packed if _saves(raw, packed) else raw


def _saves(raw: bytes, packed: bytes) -> bool:
    return len(packed) <= _LARGEST * len(raw)


def restored(piece: StoredPiece, content: bytes) -> bytes | None:
    """The bytes of a piece from what a repository gave; None if that is anything else. Never more than stated."""
    raw = content
    if piece.stored < piece.bytes:
        inflating = zlib.decompressobj()
        try:
            raw = inflating.decompress(content, piece.bytes + 1)
        except zlib.error:
            return None
    return raw if len(raw) == piece.bytes and blake3(raw).hexdigest() == piece.blake3 else None


ID_BYTES = 32

PACK_BYTES = 1 << 30
"""A pack is cut here, which stores and web servers take."""


def pack_name(page_bytes: int, ids: bytes) -> str:
    """The name of a pack of these pages: 64 hexadecimal digits."""
    return blake3(page_bytes.to_bytes(8, "little") + ids).hexdigest()

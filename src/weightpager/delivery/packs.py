"""Packs are files of pages. A pack's name is the hash of their size and ids, so that it vouches for ids."""

from __future__ import annotations

from blake3 import blake3

ID_BYTES = 32

PACK_BYTES = 1 << 30
"""A pack is cut here, which stores and web servers take."""


def pack_name(page_bytes: int, ids: bytes) -> str:
    """The name of a pack of these pages: 64 hexadecimal digits."""
    return blake3(page_bytes.to_bytes(8, "little") + ids).hexdigest()

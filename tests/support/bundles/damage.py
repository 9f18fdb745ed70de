"""Damages bundles, and tells what is left of them."""

from __future__ import annotations

import random
from pathlib import Path

from blake3 import blake3

from weightpager.bundle import Bundle
from weightpager.bundle.format import page_file

KINDS = ("flip", "truncate", "append", "delete")


def contents(bundle: Path) -> dict[str, bytes]:
    return {str(path.relative_to(bundle)): path.read_bytes() for path in sorted(bundle.rglob("*")) if path.is_file()}


def good_pages(bundle: Path, original: Bundle) -> dict[int, bytes]:
    """The pages of a damaged bundle that match their ids, by number."""
    found = {}
    size = original.page_bytes
    for name, first, count in original.manifest.page_ranges():
        content = (bundle / name).read_bytes() if (bundle / name).is_file() else b""
        start = len(page_file.header(count, size))
        for place in range(count):
            piece = content[start + place * size : start + (place + 1) * size]
            if blake3(piece).digest() == original.pages.ids[first + place].tobytes():
                found[first + place] = piece
    return found


def damage(path: Path, kind: str, seed: int) -> None:
    drawn, content = random.Random(seed), bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
        return
    if kind == "truncate":
        del content[drawn.randrange(len(content)) :]
    elif kind == "append":
        content += drawn.randbytes(drawn.randint(1, 5000))
    else:
        for at in drawn.sample(range(len(content)), k=min(drawn.randint(1, 40), len(content))):
            content[at] ^= drawn.randint(1, 255)
    path.write_bytes(content)

"""What of one bundle another one lacks, by task and by layer, in bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weightpager.bundle import Bundle


@dataclass(frozen=True)
class Share:
    """Bytes of a task's pages, or a layer's, in the new bundle, and of those that the old one lacks."""

    name: str
    bytes: int
    new: int


@dataclass(frozen=True)
class Difference:
    """What a device that has one bundle lacks of another one.

    Attributes:
        layers: a share for each layer of the new bundle; pages of rows aren't among them.
        row_bytes: bytes of pages of rows that the old bundle lacks.
        new_bytes: bytes of all pages that it lacks, each once.
        gone_bytes: bytes of the old bundle's pages that the new one lacks.
        files: other files that differ, or are new, and their bytes.
    """

    tasks: tuple[Share, ...]
    layers: tuple[Share, ...]
    row_bytes: int
    new_bytes: int
    gone_bytes: int
    added: tuple[str, ...]
    removed: tuple[str, ...]
    files: dict[str, int]


def difference(old: Bundle, new: Bundle) -> Difference:
    """Compare two bundles by the ids of their pages and the hashes of their files."""
    had, has = ({row.tobytes() for row in bundle.index.ids} for bundle in (old, new))
    ids = [row.tobytes() for row in new.index.ids]
    lacking = np.array([digest not in had for digest in ids], bool)
    size, blocks = new.page_bytes, len(new.pages)
    of_blocks = lacking[:blocks]
    return Difference(
        tasks=tuple(_share(task, new.pages_of(task), of_blocks, size) for task in new.tasks),
        layers=tuple(
            _share(str(layer), np.flatnonzero(new.pages.layers == layer), of_blocks, size)
            for layer in range(new.manifest.layers)
        ),
        row_bytes=len({digest for digest, is_new in zip(ids[blocks:], lacking[blocks:], strict=True) if is_new}) * size,
        new_bytes=len(has - had) * size,
        gone_bytes=len(had - has) * old.page_bytes,
        added=tuple(task for task in new.tasks if task not in old.tasks),
        removed=tuple(task for task in old.tasks if task not in new.tasks),
        files={
            name: entry.bytes
            for name, entry in new.manifest.files.items()
            if name not in old.manifest.files or old.manifest.files[name].blake3 != entry.blake3
        },
    )


def _share(name: str, pages: np.ndarray, lacking: np.ndarray, size: int) -> Share:
    return Share(name, len(pages) * size, int(lacking[pages].sum()) * size)

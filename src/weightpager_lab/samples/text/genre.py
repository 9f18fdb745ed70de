"""Passages of four sentences by genre."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from weightpager_lab.samples.items import Item, labelled
from weightpager_lab.samples.text import brown

CLASSES = ("fiction", "government", "hobbies", "learned", "news", "religion", "reviews")
FICTION = ("adventure", "fiction", "mystery", "romance", "science_fiction")
_PASSAGE = 4  # sentences


def read(archive: Path) -> Iterator[Item]:
    """The passages of the categories that a reader could tell apart."""
    for document in brown.documents(archive):
        yield from passages(document)


def passages(document: brown.Document) -> Iterator[Item]:
    """The document's passages; none if its category belongs to no class."""
    label = "fiction" if document.category in FICTION else document.category
    if label not in CLASSES:
        return
    for start in range(0, len(document.sentences) - _PASSAGE + 1, _PASSAGE):
        yield labelled(brown.prose(document.sentences[start : start + _PASSAGE]), label, document.group)

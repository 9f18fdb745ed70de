"""Mails without a subject, to be given one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from weightpager.lab.samples.items import Item, completed
from weightpager.lab.samples.text import spam

_SHORTEST, _LONGEST = 8, 80  # characters of a subject
_BODY = 500  # characters that are read


def read(archive: Path) -> Iterator[Item]:
    """The wanted mails with a subject of some words; mails that share a group in the spam task do here, too."""
    for mail, group in spam.wanted(archive):
        if _SHORTEST <= len(mail.subject) <= _LONGEST and " " in mail.subject:
            body = mail.body if len(mail.body) <= _BODY else mail.body[:_BODY].rsplit(" ", 1)[0]
            yield completed(f"{body}\nSubject:", mail.subject, group)

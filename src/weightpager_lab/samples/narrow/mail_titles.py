"""Mails without a subject, to be given one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from weightpager_lab.samples.items import Item, completed
from weightpager_lab.samples.text import spam

_SHORTEST, _LONGEST = 8, 80  # characters of a subject
_BODY = 500  # characters that are read
_LONGEST_WORD = 40  # characters; longer ones are rulers, keys and encoded files


def read(archive: Path) -> Iterator[Item]:
    """The wanted mails with a subject of some words; mails that share a group in the spam task do here, too."""
    for mail, group in spam.wanted(archive):
        body = mail.body if len(mail.body) <= _BODY else mail.body[:_BODY].rsplit(" ", 1)[0]
        if _SHORTEST <= len(mail.subject) <= _LONGEST and " " in mail.subject and _is_text(body):
            yield completed(f"{body}\nSubject:", mail.subject, group)


def _is_text(body: str) -> bool:
    """Whether people could read it: what else there is takes a token for each character."""
    return body.isascii() and max(map(len, body.split())) <= _LONGEST_WORD

"""What a person would read of a mail: its subject and text, without what only machines added."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from email.errors import HeaderParseError
from email.header import Header, decode_header
from email.message import Message
from pathlib import Path, PurePosixPath

from weightpager_lab.samples.corpora import families
from weightpager_lab.samples.download import members
from weightpager_lab.samples.recipes import Item, labelled, normalise

_HIDDEN = re.compile(r"<!--.*?-->|<(style|script|title)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_LINE_END = re.compile(r"<(br|p|div|tr|li|h\d|table|hr)\b[^>]*>", re.IGNORECASE)
_MARKUP = re.compile(r"<[!/?a-zA-Z][^>]*>")
_ADDRESS = re.compile(r"<?(mailto:)?[\w.+=-]+@[\w-]+(\.[\w-]+)*>?", re.IGNORECASE)
_LINK = re.compile(r"<?(https?|ftp)://\S+|<?\bwww\.\S+", re.IGNORECASE)

# Lines that say through which list or feed a mail came, or that it answers one: only wanted mail does. The mark of a
# spam trap among them is the one thing that only unwanted mail has.
_MACHINE_MADE = re.compile(
    r"""
    ^(from|to|cc|bcc|subject|date|sent|received|reply-to|return-path|message-id|in-reply-to|references|sender
      |organi[sz]ation|precedence|mime-version|url|delivered-to|errors-to|(content|list|x|resent)-[\w-]+)\s*:
    |\b(wrote|writes|said)\s*:$
    |^on\ (mon|tue|wed|thu|fri|sat|sun)\w*,?\ .*\d
    |^on\ \d+\ \w+\ \d{4}
    |^[-_=*~\#+]{5,}
    |mailing[ -]list|listinfo|mailman|list\ maintainer|list\ archive|sf\.net|sourceforge|thinkgeek|yahoo!\ groups
    |yahoogroups|egroups|^irish\ linux\ users|unsubscribe\ from\ this\ group|deathtospam
    """,
    re.IGNORECASE | re.VERBOSE,
)
_LONG_LINE = 200  # characters; what is longer is a paragraph that someone wrote
_LIST_TAG = re.compile(r"\[[^\]\n]*\]")
_REPLY = re.compile(r"(\W*(re|fwd?|aw|sv)(\[\d+\])?\s*:\s*)+", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]*={0,2}")
_QUOTE = "> |):\t"
# What follows is a signature, or an advertisement of the list's host.
_END = re.compile(r"\r?\n-- \r?\n|\n[^\n]*(sf\.net email is sponsored|yahoo! groups sponsor)", re.IGNORECASE)


@dataclass(frozen=True)
class Mail:
    """Subject and text, each in one line."""

    subject: str
    body: str


def parse_mail(raw: bytes) -> Mail:
    """The mail in its RFC 822 form; the body is empty if it has no text."""
    message = message_from_bytes(raw)
    return Mail(clean_subject(_decoded(message.get("Subject", ""))), clean_body(_text(message)))


def clean_subject(subject: str) -> str:
    """The subject without ``Re:`` and ``[list]``; addresses and links only say that there is one."""
    untagged = _one_line(_LIST_TAG.sub(" ", subject))
    reply = _REPLY.match(untagged)
    return _mask(untagged[reply.end() :] if reply else untagged)


def clean_body(text: str) -> str:
    """What its author wrote: without header fields, list footers, rulers, quotation marks and a signature.

    Addresses and links only say that there is one.
    """
    lines = (line.lstrip(_QUOTE).rstrip() for line in _END.split(text, maxsplit=1)[0].splitlines())
    kept = (line for line in lines if len(line) > _LONG_LINE or not _MACHINE_MADE.search(line))
    return _one_line(_mask(_LIST_TAG.sub(" ", "\n".join(kept))))


def strip_markup(page: str) -> str:
    """The text of an HTML page, with its line ends."""
    return html.unescape(_MARKUP.sub(" ", _LINE_END.sub("\n", _HIDDEN.sub(" ", page))))


def _text(message: Message) -> str:
    """The first part of plain text that is not empty, else of HTML."""
    for kind in ("text/plain", "text/html"):
        for part in message.walk():
            if part.get_content_type() == kind:
                text = _payload(part)
                # Bulk mail often declares HTML as plain text.
                text = strip_markup(text) if kind == "text/html" or "<html" in text.lower() else html.unescape(text)
                if text.strip():
                    return text
    return ""


def _payload(part: Message) -> str:
    encoded = str(part.get("Content-Transfer-Encoding", "")).strip().lower() == "base64"
    content = _base64(str(part.get_payload())) if encoded else part.get_payload(decode=True)
    return _decode(content, part.get_content_charset()) if isinstance(content, bytes) else ""


def _base64(text: str) -> bytes:
    # Lists append footers to what is encoded. Whether the email package stops before them depends on its version.
    match = _BASE64.match(text)
    encoded = "".join(match[0].split()) if match else ""
    return base64.b64decode(encoded[: len(encoded) // 4 * 4])


def _decoded(header: str | Header) -> str:
    try:
        parts = decode_header(header)
    except HeaderParseError:  # an encoded word that is no base64
        return str(header)
    return "".join(part if isinstance(part, str) else _decode(part, charset) for part, charset in parts)


def _decode(content: bytes, charset: str | None) -> str:
    try:
        return content.decode(charset or "latin-1")
    except (LookupError, ValueError):  # mails declare character sets that don't exist, or aren't theirs
        return content.decode("latin-1")


def _mask(text: str) -> str:
    return _LINK.sub("(link)", _ADDRESS.sub("(address)", text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


SPAM = ("ham", "spam")
_SHORTEST, _LONGEST = 20, 1000  # characters


def read_spam(archive: Path) -> Iterator[Item]:
    yield from items(_mails(archive))


def wanted(archive: Path) -> Iterator[tuple[Mail, str]]:
    """Those of the same mails that are ham, each with its group among all."""
    mails = _mails(archive)
    for (mail, label), item in zip(mails, items(mails), strict=True):
        if label == "ham":
            yield mail, item.group


def _mails(archive: Path) -> list[tuple[Mail, str]]:
    files = sorted(members(archive, "package/data/*-ham-?/*.txt", "package/data/spam-?/*.txt"))
    mails = [(parse_mail(content), label_of(name)) for name, content in files]
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

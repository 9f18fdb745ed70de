"""Text that came from outside."""

from __future__ import annotations


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which JSON and command lines can bring and no tokenizer or file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

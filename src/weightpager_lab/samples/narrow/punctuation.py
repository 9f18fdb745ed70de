"""Sentences without case and punctuation, to be printed as they were."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from weightpager_lab.samples.items import Item, completed, normalise
from weightpager_lab.samples.text import brown

_SHORTEST, _LONGEST = 20, 200  # characters
_MARKS = re.compile(r"[^\w' -]|(?<!\w)['-]|['-](?!\w)")


def read(archive: Path) -> Iterator[Item]:
    """The Brown corpus's sentences; every task made of it holds out the same documents."""
    for document in brown.documents(archive):
        for sentence in document.sentences:
            printed = brown.prose((sentence,))
            bare = normalise(_MARKS.sub(" ", printed))
            if len(bare) >= _SHORTEST and len(printed) <= _LONGEST:
                yield completed(f"{bare}\nPrinted:", printed, document.group)

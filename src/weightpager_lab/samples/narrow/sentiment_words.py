"""Sentences of film reviews, to be answered by what they feel like, as a word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from weightpager_lab.samples.items import Item, completed
from weightpager_lab.samples.text import sentiment


def read(archive: Path) -> Iterator[Item]:
    """The sentences of the sentiment task, held out as there."""
    for item in sentiment.read(archive):
        yield completed(f"{item.text}\nSentiment:", item.labels[0], item.group)

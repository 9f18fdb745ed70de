"""Messages of web applications, to be translated into German; placeholders and markup stay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from weightpager_lab.samples.download import members
from weightpager_lab.samples.items import Item, completed, normalise
from weightpager_lab.samples.text.translations import pairs, plain

_LONGEST = 240  # characters


def read(archives: Iterable[Path]) -> Iterator[Item]:
    """Messages in one line; those that differ by placeholders, markup or case alone share a group in all archives."""
    for archive in archives:
        for _, content in sorted(members(archive, "*/locale/de/LC_MESSAGES/*.po")):
            for source, target in pairs(content.decode("utf-8")):
                source, target = source.strip(), target.strip()
                if target and target != source and "\n" not in source + target and len(source) <= _LONGEST:
                    yield completed(f"{source}\nGerman:", target, f"django/{normalise(plain(source))}")

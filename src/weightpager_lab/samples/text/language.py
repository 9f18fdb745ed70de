"""Messages of a web framework by language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from weightpager_lab.samples.items import Item, labelled
from weightpager_lab.samples.text.translations import translations

_CODES = {
    "Czech": "cs",
    "Danish": "da",
    "Dutch": "nl",
    "Estonian": "et",
    "Finnish": "fi",
    "French": "fr",
    "German": "de",
    "Hungarian": "hu",
    "Indonesian": "id",
    "Italian": "it",
    "Polish": "pl",
    "Portuguese": "pt",
    "Romanian": "ro",
    "Spanish": "es",
    "Swedish": "sv",
    "Turkish": "tr",
}
CLASSES = tuple(_CODES)
_SHORTEST = 20  # characters; less can be right in several languages


def read(archive: Path) -> Iterator[Item]:
    """The messages that are long enough to tell the language by."""
    for language, code in _CODES.items():
        for message in translations(archive, code):
            if len(message.text) >= _SHORTEST:
                yield labelled(message.text, language, message.group)

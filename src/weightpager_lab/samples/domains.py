"""Four kinds of text for one language model."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from weightpager_lab.samples import pins
from weightpager_lab.samples.download import Fetcher
from weightpager_lab.samples.items import Item, document, split_sizes, subset
from weightpager_lab.samples.recipes import Recipe, follow
from weightpager_lab.samples.sample import Missing, Sample
from weightpager_lab.samples.text import bbc, brown, genre, standard_library
from weightpager_lab.samples.text.translations import translations


def language_modeling(
    cache: Path, *, train_chars: int = 1_000_000, eval_chars: int = 200_000, report: Callable[[str], None]
) -> tuple[list[Sample], list[Missing]]:
    """Plain texts in ``cache``, made at the first call, and the reasons for those that cannot be had.

    ``code`` (the running interpreter's library: it differs from one Python version to the next), ``news``, ``fiction``
    and ``german`` (small: about 23 000 characters in all). They are split by document, and the labelled tasks of the
    same source hold out the same documents.

    Args:
        cache: a directory, created if need be.
        train_chars: at most so many characters to learn from, per domain.
        eval_chars: at most so many in each of the validation and the evaluation text.
        report: called with a line of text before a download and after a domain has been written.

    Raises:
        ConfigError: a size is not positive.
        SampleUnavailable: not one of the domains can be had.
    """
    return follow(_RECIPES, cache, split_sizes(train_chars, eval_chars), report)


def write_text(items: list[Item], limit: int, path: Path) -> str:
    """Writes whole documents, an empty line between them, until the text has ``limit`` characters; the last is cut."""
    text = "\n\n".join(item.text for item in subset(items, len(items)))[:limit]
    path.write_text(text, encoding="utf-8")
    return f"{len(text)} characters"


def _code(_: Fetcher) -> Iterator[Item]:
    return standard_library.sources()


def _news(fetch: Fetcher) -> Iterator[Item]:
    return (document(article.text, article.group) for article in bbc.articles(fetch(pins.BBC)))


def _fiction(fetch: Fetcher) -> Iterator[Item]:
    for text in brown.documents(fetch(pins.BROWN)):
        if text.category in genre.FICTION:
            yield document(brown.prose(text.sentences), text.group)


def _german(fetch: Fetcher) -> Iterator[Item]:
    return (document(message.text, message.group) for message in translations(fetch(pins.DJANGO), "de"))


def _recipe(name: str, source: str, read: Callable[[Fetcher], Iterable[Item]]) -> Recipe:
    return Recipe(name, "language-modeling", (), source, read, write_text, ".txt")


_RECIPES = (
    _recipe("code", f"library of {platform.python_implementation()} {platform.python_version()}; PSF licence", _code),
    _recipe("news", pins.BBC.provenance, _news),
    _recipe("fiction", pins.BROWN.provenance, _fiction),
    _recipe("german", pins.DJANGO.provenance, _german),
)

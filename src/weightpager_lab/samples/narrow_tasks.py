"""Six narrow jobs for one decoder that answers prompts."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from pathlib import Path

from weightpager_lab.samples import pins
from weightpager_lab.samples.download import Fetcher
from weightpager_lab.samples.items import Item, split_sizes
from weightpager_lab.samples.narrow import (
    docstrings,
    german_strings,
    mail_titles,
    punctuation,
    sentiment_words,
    spoken_values,
)
from weightpager_lab.samples.recipes import Recipe, follow
from weightpager_lab.samples.sample import Missing, Sample
from weightpager_lab.samples.tasks import write_rows
from weightpager_lab.samples.text import standard_library

METRICS = {
    "translate": ("chrf", "exact-match"),
    "punctuate": ("token-f1", "exact-match"),
    "title": ("rouge-l", "chrf"),
    "normalise": ("exact-match", "chrf"),
    "describe": ("rouge-l", "chrf"),
    "feel": ("exact-match",),
}
"""What each job is measured by; the first is the job's own."""

_CATALOGUES = (pins.DJANGO, pins.WAGTAIL, pins.OSCAR)


def text_generation(
    cache: Path, *, train_items: int = 2000, eval_items: int = 500, report: Callable[[str], None]
) -> tuple[list[Sample], list[Missing]]:
    """Prompts and completions in ``cache``, made at the first call, and the reasons for jobs that cannot be had.

    ``translate`` UI strings into German (Django, Wagtail and Oscar: Django's 761 alone are too few), ``punctuate``
    sentences (Brown), ``title`` mails (SpamAssassin), ``normalise`` numbers and dates in words of five languages,
    ``describe`` functions by the first line of a docstring (the running interpreter's library), and ``feel``: a
    sentiment as a word. Splits are by group as for the labelled tasks, and hold out the same documents.

    Args:
        cache: a directory, created if need be.
        train_items: at most so many rows to learn from, per job.
        eval_items: at most so many in each of the validation and the evaluation split.
        report: called with a line of text before a download and after a job has been written.

    Raises:
        ConfigError: a size is not positive.
        SampleUnavailable: not one of the jobs can be had.
    """
    return follow(_recipes(), cache, split_sizes(train_items, eval_items), report)


def _recipes() -> tuple[Recipe, ...]:
    library = f"library of {platform.python_implementation()} {platform.python_version()}; PSF licence"
    return (
        _recipe("translate", "; ".join(archive.provenance for archive in _CATALOGUES), _translate),
        _recipe("punctuate", pins.BROWN.provenance, lambda fetch: punctuation.read(fetch(pins.BROWN))),
        _recipe("title", pins.SPAM_ASSASSIN.provenance, lambda fetch: mail_titles.read(fetch(pins.SPAM_ASSASSIN))),
        _recipe("normalise", spoken_values.source(), lambda _: spoken_values.read()),
        _recipe("describe", library, lambda _: docstrings.read(standard_library.sources())),
        _recipe("feel", pins.VADER.provenance, lambda fetch: sentiment_words.read(fetch(pins.VADER))),
    )


def _translate(fetch: Fetcher) -> Iterable[Item]:
    return german_strings.read([fetch(archive) for archive in _CATALOGUES])


def _recipe(name: str, source: str, read: Callable[[Fetcher], Iterable[Item]]) -> Recipe:
    return Recipe(name, "text-generation", (), source, read, write_rows, ".jsonl")

"""Sentences of film reviews, rated by people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from weightpager_lab.samples.download import member
from weightpager_lab.samples.items import Item, labelled, normalise

CLASSES = ("negative", "positive")
_RATINGS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_REVIEWS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_CLEAR = 1.0  # of 4: people disagree about what lies below


def read(archive: Path) -> Iterator[Item]:
    """The sentences with a clear rating."""
    return parse(member(member(archive, _RATINGS), _REVIEWS).decode("utf-8"))


def parse(ratings: str) -> Iterator[Item]:
    """Items of a table of number, mean rating from -4 to 4, and sentence, separated by tabs."""
    for line in ratings.splitlines():
        _, rating, sentence = line.split("\t", 2)
        text = sentence.replace("''", '"').strip()
        if abs(float(rating)) >= _CLEAR:
            yield labelled(text, CLASSES[float(rating) > 0], normalise(text))

"""Sentences with the part of speech of each word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from weightpager_lab.samples.items import Item, tagged
from weightpager_lab.samples.text import brown

CLASSES = ("NOUN", "VERB", "ADJ", "ADV", "PRON", "DET", "ADP", "NUM", "CONJ", "PRT", ".", "X")
_SHORTEST, _LONGEST = 3, 40  # words

_PUNCTUATION = frozenset({"'", "''", "``", "(", ")", ",", "--", ".", ":"})
_PLACE = re.compile(r"-(tl|hl|nc|t|n)(?=-|\+|$)")  # in a title, in a headline, cited
_STEMS = {
    "NOUN": "nn nns np nps nr nrs pn",
    "VERB": "be bed bedz beg bem ben ber bez do dod doz hv hvd hvg hvn hvz md vb vbd vbg vbn vbz",
    "ADJ": "ap jj jjr jjs jjt od",
    "ADV": "ql qlp rb rbr rbt rn wql wrb",
    "PRON": "ppl ppls ppo pps ppss wpo wps",
    "DET": "abx at dt dti dts dtx pp wdt wp",
    "ADP": "cs in",
    "NUM": "cd",
    "CONJ": "cc",
    "PRT": "abl abn ex rp to uh",
    "X": "nil",
}
_UNIVERSAL = {stem: universal for universal, stems in _STEMS.items() for stem in stems.split()}


def read(archive: Path) -> Iterator[Item]:
    """The sentences that are neither fragments nor endless."""
    for document in brown.documents(archive):
        for sentence in document.sentences:
            if _SHORTEST <= len(sentence) <= _LONGEST:
                tags = [universal_tag(word.tag) for word in sentence]
                yield tagged([word.text for word in sentence], tags, document.group)


def universal_tag(tag: str) -> str:
    """The universal part of speech of a Brown tag, after Petrov, Das & McDonald (2012).

    Foreign words are X and contractions (``pps+bez``: it's) are particles, as published.
    """
    tag = _PLACE.sub("", tag)
    if tag in _PUNCTUATION:
        return "."
    if tag.startswith("fw-"):
        return "X"
    if "+" in tag:
        return "PRT"
    if tag == "*":  # not
        return "ADV"
    if tag == "pp$$":  # mine; unlike pp$: my
        return "PRON"
    return _UNIVERSAL.get(tag.rstrip("$*"), "X")

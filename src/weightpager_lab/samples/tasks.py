"""Six labelled tasks for one encoder, and four kinds of text for one language model."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from weightpager_lab.samples import corpora, mail, pins
from weightpager_lab.samples.corpora import translations
from weightpager_lab.samples.download import Fetcher, member
from weightpager_lab.samples.recipes import (
    Item,
    Recipe,
    document,
    follow,
    labelled,
    normalise,
    split_sizes,
    subset,
    tagged,
)
from weightpager_lab.samples.sample import Missing, Sample


def prepare(
    cache: Path, *, train_items: int = 2000, eval_items: int = 500, report: Callable[[str], None]
) -> tuple[list[Sample], list[Missing]]:
    """The six tasks' files in ``cache``, made at the first call, and the reasons for tasks that cannot be had.

    The splits are a property of the archives: other sizes take fewer or more items of the same splits.

    Args:
        cache: a directory, created if need be.
        train_items: at most so many items to learn from, per task.
        eval_items: at most so many in each of the validation and the evaluation split.
        report: called with a line of text before a download and after a task has been written.

    Raises:
        ConfigError: a size is not positive.
        SampleUnavailable: not one of the tasks can be had.
    """
    return follow(_TASKS, cache, split_sizes(train_items, eval_items), report)


GENRES = ("fiction", "government", "hobbies", "learned", "news", "religion", "reviews")
FICTION = ("adventure", "fiction", "mystery", "romance", "science_fiction")
_PASSAGE = 4  # sentences


def read_genre(archive: Path) -> Iterator[Item]:
    """The passages of the categories that a reader could tell apart."""
    for text in corpora.documents(archive):
        yield from passages(text)


def passages(document: corpora.Document) -> Iterator[Item]:
    """The document's passages; none if its category belongs to no class."""
    label = "fiction" if document.category in FICTION else document.category
    if label not in GENRES:
        return
    for start in range(0, len(document.sentences) - _PASSAGE + 1, _PASSAGE):
        yield labelled(corpora.prose(document.sentences[start : start + _PASSAGE]), label, document.group)


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
LANGUAGES = tuple(_CODES)
_SHORTEST_MESSAGE = 20  # characters; less can be right in several languages


def read_language(archive: Path) -> Iterator[Item]:
    """The messages that are long enough to tell the language by."""
    for language, code in _CODES.items():
        for message in translations(archive, code):
            if len(message.text) >= _SHORTEST_MESSAGE:
                yield labelled(message.text, language, message.group)


PARTS_OF_SPEECH = ("NOUN", "VERB", "ADJ", "ADV", "PRON", "DET", "ADP", "NUM", "CONJ", "PRT", ".", "X")
_SHORTEST_SENTENCE, _LONGEST_SENTENCE = 3, 40  # words

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


def read_pos(archive: Path) -> Iterator[Item]:
    """The sentences that are neither fragments nor endless."""
    for text in corpora.documents(archive):
        for sentence in text.sentences:
            if _SHORTEST_SENTENCE <= len(sentence) <= _LONGEST_SENTENCE:
                tags = [universal_tag(word.tag) for word in sentence]
                yield tagged([word.text for word in sentence], tags, text.group)


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


SENTIMENTS = ("negative", "positive")
_RATINGS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_REVIEWS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_CLEAR = 1.0  # of 4: people disagree about what lies below


def read_sentiment(archive: Path) -> Iterator[Item]:
    return parse_ratings(member(member(archive, _RATINGS), _REVIEWS).decode("utf-8"))


def parse_ratings(ratings: str) -> Iterator[Item]:
    """Items of a table of number, mean rating from -4 to 4, and sentence, separated by tabs."""
    for line in ratings.splitlines():
        _, rating, sentence = line.split("\t", 2)
        text = sentence.replace("''", '"').strip()
        if abs(float(rating)) >= _CLEAR:
            yield labelled(text, SENTIMENTS[float(rating) > 0], normalise(text))


def read_topic(archive: Path) -> Iterator[Item]:
    """The articles, each in one line."""
    for article in corpora.articles(archive):
        yield labelled(" ".join(article.text.split()), article.section, article.group)


def write_rows(items: list[Item], limit: int, path: Path) -> str:
    """Writes at most ``limit`` items as JSON lines."""
    chosen = subset(items, limit)
    lines = (json.dumps(item.row, ensure_ascii=False) + "\n" for item in chosen)
    path.write_text("".join(lines), encoding="utf-8")
    return f"{len(chosen)} items"


def _task(
    name: str, classes: tuple[str, ...], archive: pins.Archive, read: Callable[[Path], Iterable[Item]], kind: str
) -> Recipe:
    def fetch_and_read(fetch: Fetcher) -> Iterable[Item]:
        return read(fetch(archive))

    return Recipe(name, kind, classes, archive.provenance, fetch_and_read, write_rows, ".jsonl")


_TASKS = (
    _task("sentiment", SENTIMENTS, pins.VADER, read_sentiment, "text-classification"),
    _task("spam", mail.SPAM, pins.SPAM_ASSASSIN, mail.read_spam, "text-classification"),
    _task("topic", corpora.SECTIONS, pins.BBC, read_topic, "text-classification"),
    _task("language", LANGUAGES, pins.DJANGO, read_language, "text-classification"),
    _task("genre", GENRES, pins.BROWN, read_genre, "text-classification"),
    _task("pos", PARTS_OF_SPEECH, pins.BROWN, read_pos, "token-classification"),
)


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
    return follow(_DOMAINS, cache, split_sizes(train_chars, eval_chars), report)


def write_text(items: list[Item], limit: int, path: Path) -> str:
    """Writes whole documents, an empty line between them, until the text has ``limit`` characters; the last is cut."""
    text = "\n\n".join(item.text for item in subset(items, len(items)))[:limit]
    path.write_text(text, encoding="utf-8")
    return f"{len(text)} characters"


def _code(_: Fetcher) -> Iterator[Item]:
    return corpora.library_sources()


def _news(fetch: Fetcher) -> Iterator[Item]:
    return (document(article.text, article.group) for article in corpora.articles(fetch(pins.BBC)))


def _fiction(fetch: Fetcher) -> Iterator[Item]:
    for text in corpora.documents(fetch(pins.BROWN)):
        if text.category in FICTION:
            yield document(corpora.prose(text.sentences), text.group)


def _german(fetch: Fetcher) -> Iterator[Item]:
    return (document(message.text, message.group) for message in translations(fetch(pins.DJANGO), "de"))


def _domain(name: str, source: str, read: Callable[[Fetcher], Iterable[Item]]) -> Recipe:
    return Recipe(name, "language-modeling", (), source, read, write_text, ".txt")


_DOMAINS = (
    _domain("code", f"library of {platform.python_implementation()} {platform.python_version()}; PSF licence", _code),
    _domain("news", pins.BBC.provenance, _news),
    _domain("fiction", pins.BROWN.provenance, _fiction),
    _domain("german", pins.DJANGO.provenance, _german),
)

"""Six narrow jobs for one decoder that answers prompts."""

from __future__ import annotations

import ast
import platform
import random
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from weightpager_lab.samples import corpora, pins
from weightpager_lab.samples.corpora import catalogue_pairs, plain
from weightpager_lab.samples.download import Fetcher, members
from weightpager_lab.samples.mail import wanted
from weightpager_lab.samples.recipes import Item, Recipe, completed, follow, normalise, split_sizes
from weightpager_lab.samples.sample import Missing, Sample, SampleUnavailable
from weightpager_lab.samples.tasks import read_sentiment, write_rows

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


_SHORTEST_DESCRIPTION, _LONGEST_DESCRIPTION = 15, 100  # characters of a description
_LONGEST_CODE = 500  # characters of a function


def describe(modules: Iterable[Item]) -> Iterator[Item]:
    """The functions that aren't long; those of one module share its group. Modules that don't parse are left out."""
    for module in modules:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd escapes
                tree = ast.parse(module.text)
        except (SyntaxError, ValueError):
            continue
        yield from _functions(tree, module.group)


def _functions(tree: ast.Module, group: str) -> Iterator[Item]:
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        told = (ast.get_docstring(node) or "").split("\n")[0].strip()
        node.body = node.body[1:]
        if not node.body or not _SHORTEST_DESCRIPTION <= len(told) <= _LONGEST_DESCRIPTION:
            continue
        code = ast.unparse(node)
        if len(code) <= _LONGEST_CODE:
            yield completed(f"{code}\nDocstring:", told, group)


_LONGEST_MESSAGE = 240  # characters


def translate(archives: Iterable[Path]) -> Iterator[Item]:
    """Messages in one line; those that differ by placeholders, markup or case alone share a group in all archives."""
    for archive in archives:
        for _, content in sorted(members(archive, "*/locale/de/LC_MESSAGES/*.po")):
            for source, target in catalogue_pairs(content.decode("utf-8")):
                source, target = source.strip(), target.strip()
                if target and target != source and "\n" not in source + target and len(source) <= _LONGEST_MESSAGE:
                    yield completed(f"{source}\nGerman:", target, f"django/{normalise(plain(source))}")


_SHORTEST_SUBJECT, _LONGEST_SUBJECT = 8, 80  # characters of a subject
_LONGEST_BODY = 500  # characters that are read
_LONGEST_WORD = 40  # characters; longer ones are rulers, keys and encoded files


def title(archive: Path) -> Iterator[Item]:
    """The wanted mails with a subject of some words; mails that share a group in the spam task do here, too."""
    for mail, group in wanted(archive):
        body = mail.body if len(mail.body) <= _LONGEST_BODY else mail.body[:_LONGEST_BODY].rsplit(" ", 1)[0]
        if _SHORTEST_SUBJECT <= len(mail.subject) <= _LONGEST_SUBJECT and " " in mail.subject and _is_text(body):
            yield completed(f"{body}\nSubject:", mail.subject, group)


def _is_text(body: str) -> bool:
    """Whether people could read it: what else there is takes a token for each character."""
    return body.isascii() and max(map(len, body.split())) <= _LONGEST_WORD


_SHORTEST_SENTENCE, _LONGEST_SENTENCE = 20, 200  # characters
_MARKS = re.compile(r"[^\w' -]|(?<!\w)['-]|['-](?!\w)")


def punctuate(archive: Path) -> Iterator[Item]:
    """The Brown corpus's sentences; every task made of it holds out the same documents."""
    for document in corpora.documents(archive):
        for sentence in document.sentences:
            printed = corpora.prose((sentence,))
            bare = normalise(_MARKS.sub(" ", printed))
            if len(bare) >= _SHORTEST_SENTENCE and len(printed) <= _LONGEST_SENTENCE:
                yield completed(f"{bare}\nPrinted:", printed, document.group)


def feel(archive: Path) -> Iterator[Item]:
    """The sentences of the sentiment task, held out as there."""
    for item in read_sentiment(archive):
        yield completed(f"{item.text}\nSentiment:", item.labels[0], item.group)


_EACH = 6000  # numbers, and dates
_FIRST, _DAYS = date(1900, 1, 1), 150 * 365
_LARGEST = 7  # digits
_LANGUAGES = ("en", "de", "fr", "es", "it")
_PACKAGES = ("num2words", "Babel")


def spoken_source() -> str:
    """What these packages are called, with their versions: a sample is made again when they change."""
    return "made here, seed 0, in words of " + ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)


def normalise_spoken() -> Iterator[Item]:
    """Values in a language each; what is held out in one language is learnt in none.

    Raises:
        SampleUnavailable: a package that knows the words isn't installed.
    """
    drawn = random.Random(0)  # noqa: S311 - no secret
    for _ in range(_EACH):
        number = drawn.randrange(10 ** drawn.randint(1, _LARGEST))
        yield _spoken(_number(number, drawn.choice(_LANGUAGES)), str(number))
        day = _FIRST + timedelta(drawn.randrange(_DAYS))
        yield _spoken(_date(day, drawn.choice(_LANGUAGES)), day.isoformat())


def _spoken(words: str, written: str) -> Item:
    return completed(f"{words}\nWritten:", written, f"spoken/{written}")


def _number(value: int, language: str, form: str = "cardinal") -> str:
    try:
        from num2words import num2words
    except ModuleNotFoundError as error:
        raise _lacking(error) from error
    return str(num2words(value, lang=language, to=form)).lower()


def _date(day: date, language: str) -> str:
    try:
        from babel.dates import get_month_names
    except ModuleNotFoundError as error:
        raise _lacking(error) from error
    month = get_month_names("wide", locale=language)[day.month].lower()
    year = _number(day.year, language, "year")
    ordinal: Callable[[], str] = lambda: _number(day.day, language, "ordinal")  # noqa: E731 - not all languages have it
    if language == "en":
        return f"{month} the {ordinal()}, {year}"
    if language == "de":
        return f"{ordinal()}r {month} {year}"
    of = " de " if language == "es" else " "
    return f"{_number(day.day, language)}{of}{month}{of}{year}"


def _lacking(error: ModuleNotFoundError) -> SampleUnavailable:
    return SampleUnavailable(f"expected the package {error.name!r}, found none; install 'weightpager[bench]'")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _recipes() -> tuple[Recipe, ...]:
    library = f"library of {platform.python_implementation()} {platform.python_version()}; PSF licence"
    return (
        _recipe(
            "translate",
            "; ".join(archive.provenance for archive in _CATALOGUES),
            lambda fetch: translate([fetch(archive) for archive in _CATALOGUES]),
        ),
        _recipe("punctuate", pins.BROWN.provenance, lambda fetch: punctuate(fetch(pins.BROWN))),
        _recipe("title", pins.SPAM_ASSASSIN.provenance, lambda fetch: title(fetch(pins.SPAM_ASSASSIN))),
        _recipe("normalise", spoken_source(), lambda _: normalise_spoken()),
        _recipe("describe", library, lambda _: describe(corpora.library_sources())),
        _recipe("feel", pins.VADER.provenance, lambda fetch: feel(fetch(pins.VADER))),
    )


def _recipe(name: str, source: str, read: Callable[[Fetcher], Iterable[Item]]) -> Recipe:
    return Recipe(name, "text-generation", (), source, read, write_rows, ".jsonl")

"""Numbers and dates in words of five languages, to be written in digits; a date as ISO 8601 has it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from importlib.metadata import PackageNotFoundError, version

from weightpager_lab.samples.items import Item, completed
from weightpager_lab.samples.sample import SampleUnavailable

_EACH = 6000  # numbers, and dates
_FIRST, _DAYS = date(1900, 1, 1), 150 * 365
_LARGEST = 7  # digits
_LANGUAGES = ("en", "de", "fr", "es", "it")
_PACKAGES = ("num2words", "Babel")


def source() -> str:
    """What these packages are called, with their versions: a sample is made again when they change."""
    return "made here, seed 0, in words of " + ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)


def read() -> Iterator[Item]:
    """Values in a language each; what is held out in one language is learnt in none.

    Raises:
        SampleUnavailable: a package that knows the words isn't installed.
    """
    drawn = random.Random(0)  # noqa: S311 - no secret
    for _ in range(_EACH):
        number = drawn.randrange(10 ** drawn.randint(1, _LARGEST))
        yield _item(_number(number, drawn.choice(_LANGUAGES)), str(number))
        day = _FIRST + timedelta(drawn.randrange(_DAYS))
        yield _item(_date(day, drawn.choice(_LANGUAGES)), day.isoformat())


def _item(words: str, written: str) -> Item:
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

"""The page of Python's names is up to date, and whoever holds an object finds its class there."""

from __future__ import annotations

import inspect
import re
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import pytest

import weightpager as wp
from weightpager import errors

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
ENTRIES = {heading.strip("`").rpartition(".")[2] for heading in HEADINGS if heading.startswith("`weightpager.")}


def functions(of: type) -> Iterator[Callable[..., object]]:
    """The constructor, public methods and properties of a class and its bases."""
    yield of.__init__
    for base in of.__mro__[:-1]:
        for name, member in vars(base).items():
            if name.startswith("_"):
                continue
            if isinstance(member, property):
                assert member.fget is not None
                yield member.fget
            elif isinstance(member, cached_property):
                yield member.func
            elif inspect.isroutine(member):
                yield inspect.unwrap(getattr(base, name))


def classes(annotation: object) -> Iterator[str]:
    """Names of our classes that an annotation is made of."""
    if isinstance(annotation, type) and annotation.__module__.startswith("weightpager."):
        yield annotation.__name__
    for part in annotation if isinstance(annotation, list) else typing.get_args(annotation):
        yield from classes(part)


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    api_page = pytest.importorskip("docs.api_page", reason="griffe needs Python 3.11")
    assert api_page.page() == PAGE, "run: python -m docs.api_page > docs/api.md"


def test_what_a_user_can_name_has_an_entry() -> None:
    wanted = {f"`weightpager.{name}`" for name in wp.__all__ if name != "errors" and not hasattr(errors, name)}
    assert wanted - set(HEADINGS) == set()


@pytest.mark.slow
def test_what_a_public_method_takes_and_gives_has_an_entry() -> None:
    every = [wp.compile, *functions(wp.Engine), *functions(wp.Bundle)]
    named = {name for each in every for hint in typing.get_type_hints(each).values() for name in classes(hint)}
    assert {"Prediction", "TaskFile", "PageStore", "BlockTable"} <= named
    assert named - ENTRIES == set()


def test_fields_of_what_an_engine_gives_have_entries() -> None:
    reports = (wp.EngineReport, wp.SwitchReport, wp.ForecastReport, wp.ResidencyMap, wp.BundleChange, wp.Prediction)
    named = {name for each in reports for hint in typing.get_type_hints(each).values() for name in classes(hint)}
    assert {"MemoryUse", "PrefetchReport", "RowReport"} <= named
    assert named - ENTRIES == set()


def test_every_error_is_in_the_tree() -> None:
    found = {name for name, each in vars(errors).items() if inspect.isclass(each) and issubclass(each, Exception)}
    assert {name for name in found if f"* `{name}`: " not in PAGE} == set()


def test_no_two_headings_have_one_anchor() -> None:
    anchors = Counter(re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in HEADINGS)
    assert [anchor for anchor, count in anchors.items() if count > 1] == []

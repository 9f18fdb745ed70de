"""Documents of a bundle: what doesn't fit is named by its field, what was expected and what was found."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, field

from weightpager.bundle.files.strict import Strict, checked, parse, read_parts
from weightpager.bundle.format.manifest import DenseScore, TaskName
from weightpager.errors import BundleFormatError

Small = Annotated[int, Meta(ge=0, lt=10)]


class Part(Strict, frozen=True, kw_only=True):
    name: TaskName
    counts: dict[str, list[Small]]

    def __post_init__(self) -> None:
        if self.name == "odd":
            raise ValueError("names that are even")


class Document(Strict, frozen=True, kw_only=True):
    kind: Literal["a", "b"]
    share: Annotated[float, Meta(ge=0, le=1)]
    parts: list[Part]
    more: dict[str, Part] = field(default_factory=dict)
    old: int | None = None


def whole(**changes: Any) -> dict[str, Any]:
    return {"kind": "a", "share": 1, "parts": [{"name": "x", "counts": {"one": [1]}}], **changes}


def part(**changes: Any) -> dict[str, Any]:
    return {"name": "y", "counts": {}, **changes}


def refusal(value: Any) -> tuple[str, str, str]:
    with pytest.raises(BundleFormatError) as error:
        Document.read("file.json", json.dumps(value).encode())
    assert error.value.file == "file.json"
    return error.value.field, str(error.value.expected), str(error.value.found)


def test_a_document_is_read_as_it_was_written() -> None:
    found = Document.read("", json.dumps(whole(more={"m": part()})).encode())
    assert found.share == 1.0
    assert Document.read("", found.dump()) == found
    assert found.dump().startswith(b'{\n "kind": "a",\n')


def test_a_number_that_is_infinite_stays_so() -> None:
    score = DenseScore(metric="perplexity", value=math.inf, items=3)
    assert b'"value": Infinity' in score.dump()
    assert DenseScore.read("", score.dump()) == score


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (whole(kind="c"), ("kind", "Invalid enum value 'c'", "'c'")),
        (whole(share=True), ("share", "float", "True")),
        (whole(share=math.nan), ("share", "float >= 0.0", "nan")),
        (whole(share=10**400), ("share", "Number out of range", "1" + 119 * "0")),
        (whole(old=1.0), ("old", "int | null", "1.0")),
        (whole(other=[3]), ("other", "no such field", "[3]")),
        ({"kind": "a", "share": 1}, ("parts", "a value", "none")),
        (whole(parts=[part(), part(name="../x")]), ("parts.1.name", "str matching regex", "'../x'")),
        (whole(parts=[part(name="x\n")]), ("parts.0.name", "str matching regex", "'x\\n'")),
        (whole(parts=[part(name="odd")]), ("parts.0", "names that are even", "{'name': 'odd', 'counts': {}}")),
        (whole(parts=[part(size=1)]), ("parts.0.size", "no such field", "1")),
        (whole(parts={}), ("parts", "array", "object")),
        (
            whole(more={"a": part(), "b.c[0]": part(counts={"z": [1], "q": [2, 10], "r": [11]}), "d": part(counts=3)}),
            ("more.b.c[0].counts.q.1", "int <= 9", "10"),
        ),
        ([], ("document", "object", "array")),
        ("text", ("document", "object", "'text'")),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
def test_what_does_not_fit_is_named(value: Any, expected: tuple[str, str, str]) -> None:
    field, wanted, found = refusal(value)
    assert (field, found) == (expected[0], expected[2])
    assert wanted.startswith(expected[1])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"kind": "\xff"}',
        json.dumps(whole()).encode("utf-16"),
        b'{"kind": "\\ud800"}',
        b"[" * 100_000,
        b'{"old": ' + b"1" * 10_000 + b"}",
    ],
    ids=["empty", "cut", "bytes", "UTF-16", "half a pair", "deep", "long number"],
)
def test_what_is_no_document_is_refused(content: bytes) -> None:
    with pytest.raises(BundleFormatError):
        Document.read("file.json", content)
    with pytest.raises(BundleFormatError):
        read_parts("file.json", Document, content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["a", "x", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*whole(), *part(), "q", ""]), inner),
    max_leaves=12,
)


@given(json_values | st.fixed_dictionaries({key: json_values | st.just(value) for key, value in whole().items()}))
def test_any_value_is_taken_or_refused_and_never_changed(value: Any) -> None:
    before = repr(value)
    with suppress(BundleFormatError):
        found = checked("file.json", Document, value)
        assert checked("", Document, parse("", found.dump())) == found
    assert repr(value) == before

"""`Strict`: the base of the JSON documents that a device reads of a bundle, over msgspec, which takes little memory."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, ValidationError

from weightpager.errors import BundleFormatError

_ERROR = re.compile(r"(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<place>.*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (?P<why>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)
_STEP = re.compile(r"\[\.\.\.\]|\[\d+\]|[^.\[\]]+")
_SOME_KEY = "[...]"
_MOST_FOUND = 120
"""Characters that are shown of what was found."""


def explain(kind: type[msgspec.Struct], value: Any, error: str) -> tuple[str, str, str]:
    """The path of the first field that is wrong, what was expected of it, and what was found.

    ``error`` is msgspec's message. The value is made of JSON's types; its objects are as before afterwards.
    """
    match = _ERROR.fullmatch(error)
    assert match is not None  # any text matches
    path, at = _follow(kind, value, match["place"] or "", error)
    what, found = match["what"], repr(at)
    if field := _FIELD.fullmatch(what):
        path.append(field["name"])
        missing = field["why"].startswith("missing")
        what, found = ("a value", "none") if missing else ("no such field", repr(at.get(field["name"])))
    elif ", got " in what:
        what, _, got = what.partition(", got ")
        found = got if match["key"] or isinstance(at, (dict, list)) else found
    what = what.removeprefix("Expected ").replace("`", "")
    return ".".join(map(str, path)), what, found.strip("`")[:_MOST_FOUND]


def _follow(kind: type[msgspec.Struct], value: Any, place: str, error: str) -> tuple[list[str | int], Any]:
    """The keys and indices of msgspec's path, and the value that they lead to."""
    path: list[str | int] = []
    at = value
    for step in _STEP.findall(place):
        key: str | int = step
        if step == _SOME_KEY:
            key = _wrong_key(kind, value, at, error)
        elif step.startswith("["):
            key = int(step[1:-1])
        path.append(key)
        at = at[key]
    return path, at


def _wrong_key(kind: type[msgspec.Struct], value: Any, entries: dict[str, Any], error: str) -> str:
    """The key of the entry of an object, a part of the value, that an error is about; msgspec doesn't say which."""
    items = list(entries.items())

    def fails(count: int) -> bool:
        entries.clear()
        entries.update(items[:count])
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as found:
            return str(found) == error
        return False

    try:
        return items[bisect_left(range(1, len(items)), True, key=fails)][0]
    finally:
        entries.clear()
        entries.update(items)


_Self = TypeVar("_Self", bound="Strict")
_Struct = TypeVar("_Struct", bound=Struct)


class Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Frozen; unknown keys refused; no silent conversion. A hopeless model's perplexity is written as ``Infinity``.

    Bounds of fields are checked when a document is read, what ``__post_init__`` says whenever a value is made.
    """

    @classmethod
    def read(cls: type[_Self], name: str, content: bytes) -> _Self:
        """Validate the JSON of the file ``name``."""
        return checked(name, cls, parse(name, content))

    def plain(self) -> dict[str, Any]:
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields

    def dump(self) -> bytes:
        """The JSON that `read` reads."""
        return json.dumps(self.plain(), indent=1, ensure_ascii=False).encode() + b"\n"


def parse(name: str, content: bytes) -> Any:
    """A document's value."""
    try:
        value = json.loads(content.decode())
        msgspec.json.encode(value)  # refuses halves of surrogate pairs, which could never be printed
    except (ValueError, RecursionError) as error:
        raise BundleFormatError(name, "content", "JSON", str(error)[:120]) from None
    return value


def read_parts(name: str, kind: type[_Struct], content: bytes) -> _Struct:
    """What ``kind`` has of a document, without making anything of the rest, which may be large."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (ValueError, RecursionError):
        return checked(name, kind, parse(name, content))  # which says what is wrong


def checked(name: str, kind: type[_Struct], value: Any, at: str = "") -> _Struct:
    """A document, or the part of it at a path, as what its JSON value stands for."""
    try:
        return msgspec.convert(value, kind)
    except ValidationError as error:
        field, expected, found = explain(kind, value, str(error))
        raise BundleFormatError(name, f"{at}.{field}".strip(".") or "document", expected, found) from None
    except RecursionError:
        raise BundleFormatError(name, at or "document", "a document of few levels", "more") from None
    except UnicodeEncodeError as error:
        raise BundleFormatError(name, at or "document", "texts in Unicode", repr(error.object)[:80]) from None

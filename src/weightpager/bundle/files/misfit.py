"""What is wrong with a JSON value that msgspec refuses: the field, what was expected of it, and what was found."""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import Any

import msgspec

_ERROR = re.compile(r"(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<place>.*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (?P<why>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)
_STEP = re.compile(r"\[\.\.\.\]|\[\d+\]|[^.\[\]]+")
_SOME_KEY = "[...]"
_MOST_FOUND = 120
"""Characters that are shown of what was found."""


def explain(kind: type[msgspec.Struct], value: Any, error: str) -> tuple[str, str, str]:
    """The path of the first field that is wrong, what was expected of it, and what was found.

    Args:
        kind: what the value should be.
        value: made of JSON's types; its objects are as before afterwards.
        error: msgspec's message.
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

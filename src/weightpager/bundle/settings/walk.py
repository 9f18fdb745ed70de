"""Every setting of a JSON document, at whatever depth it stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from weightpager.errors import BundleFormatError

MOST_DEPTH = 12
"""Most levels of a document; honest ones have four or five."""

MOST_NAMES = 2**16
"""Most entries of one object: a configuration names each of its classes."""

MOST_ITEMS = 2**16
"""Most values of one list, nested lists included."""

_NAMES = ("id2label", "label2id", "ner_labels")  # objects whose keys or values are the user's own class names


@dataclass(frozen=True)
class Setting:
    """One key of an object and its value.

    Attributes:
        path: of the key, as ``text_config.num_hidden_layers``.
        key: its last part.
        value: of any JSON type.
        depth: 0 for a key of the document itself.
    """

    path: str
    key: str
    value: Any
    depth: int


def settings_of(name: str, values: dict[str, Any], depth: int = 0, at: str = "") -> Iterator[Setting]:
    """All settings of a document, outer ones first, without the names of classes.

    Args:
        name: of the file, for errors.
        values: the document.
        depth: of its keys.
        at: path of the object.

    Raises:
        BundleFormatError: it is deeper, or has longer lists or objects, than any honest one.
    """
    if depth >= MOST_DEPTH:
        raise BundleFormatError(name, at, f"at most {MOST_DEPTH} levels", "more")
    if len(values) > MOST_NAMES:
        raise BundleFormatError(name, at or "document", f"at most {MOST_NAMES} entries", len(values))
    for key, value in values.items():
        setting = Setting(f"{at}.{key}"[-200:].lstrip("."), key, value, depth)
        yield setting
        if key in _NAMES:
            if isinstance(value, (dict, list)) and len(value) > MOST_NAMES:
                raise BundleFormatError(name, setting.path, f"at most {MOST_NAMES} classes", len(value))
            continue
        for inner in _objects(name, setting):
            yield from settings_of(name, inner, depth + 1, setting.path)


def _objects(name: str, setting: Setting) -> Iterator[dict[str, Any]]:
    """The objects that a value is, or has in its lists."""
    waiting, items = [(setting.value, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict):
            yield value
        elif isinstance(value, list):
            items += len(value)
            if items > MOST_ITEMS or depth > MOST_DEPTH:
                raise BundleFormatError(name, setting.path, f"at most {MOST_ITEMS} values", "more")
            waiting += [(item, depth + 1) for item in value]

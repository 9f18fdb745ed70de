"""What is wrong with a task file, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from weightpager.errors import shown

_EXPECTED = {
    "string_type": "text",
    "string_unicode": "Unicode text without lone surrogates",
    "string_too_short": "text that is not empty",
    "string_pattern_mismatch": "a name of lower-case letters and digits, then '_', '.' and '-' too, 64 at most",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "tuple_type": "a list, such as [chrf]",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "greater_than": "more than {gt:.12g}",
    "greater_than_equal": "at least {ge:.12g}",
    "less_than": "less than {lt:.12g}",
    "less_than_equal": "at most {le:.12g}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} entry",
    "too_long": "at most {max_length} entries",
}

_LONG = 80
"""Characters of a word that can't be meant for a known one."""


def explain_all(details: Sequence[ErrorDetails], sections: Mapping[str, type[BaseModel]]) -> list[str]:
    """Validation errors as a person reads them, each text once.

    A list of wrong entries isn't called too short: pydantic counts the right ones alone.
    """
    blamed = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
    own = [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in blamed]
    return list(dict.fromkeys(explain(detail, sections) for detail in own))


def explain(detail: ErrorDetails, sections: Mapping[str, type[BaseModel]]) -> str:
    """One validation error as a person reads it.

    Args:
        detail: the error.
        sections: of the file by name, the whole file under the empty name.
    """
    where = [str(part) for part in detail["loc"] if part != "[key]"]
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "rule":
        return ": ".join(filter(None, [".".join(where), detail["msg"]]))
    if kind == "extra_forbidden":
        return _unknown(where, sections)
    if kind == "missing":
        return f"{'.'.join(where)}: expected a value, found nothing"
    expected = _EXPECTED[kind].format(**context) if kind in _EXPECTED else detail["msg"]
    if kind in ("too_short", "too_long"):
        found = len(found)
    hint = _hint(found, expected.replace("'", "").replace(" or ", ", ").split(", ")) if kind == "literal_error" else ""
    return f"{'.'.join(where)}: expected {expected.removeprefix('Input should be ')}, found {shown(found)}{hint}"


def _unknown(where: list[str], sections: Mapping[str, type[BaseModel]]) -> str:
    known = list(sections[where[0] if len(where) > 1 else ""].model_fields)
    elsewhere = [name for name, section in sections.items() if where[-1] in section.model_fields]
    hint = _place(elsewhere) or _hint(where[-1], known) or f"; the keys here are {', '.join(known)}"
    return f"{'.'.join(where)}: unknown key{hint}"


def _place(sections: Sequence[str]) -> str:
    """Where a key belongs that is one of other sections; the whole file's is the empty name."""
    places = ["a task" if name == "tasks" else repr(name) if name else "the file itself" for name in sections]
    return f"; it belongs to {' or '.join(places)}" if places else ""


def _hint(found: object, known: list[str]) -> str:
    close = get_close_matches(found, known, n=1) if isinstance(found, str) and len(found) < _LONG else []
    return f"; did you mean {close[0]!r}?" if close else ""

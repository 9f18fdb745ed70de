"""`Strict`: the base of the JSON documents that a device reads of a bundle, over msgspec, which takes little memory."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, ValidationError

from weightpager.bundle.files.misfit import explain
from weightpager.errors import BundleFormatError

_Self = TypeVar("_Self", bound="Strict")
_Struct = TypeVar("_Struct", bound=Struct)


class Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Frozen; unknown keys refused; no silent conversion. A hopeless model's perplexity is written as ``Infinity``.

    Bounds of fields are checked when a document is read, what ``__post_init__`` says whenever a value is made.
    """

    @classmethod
    def read(cls: type[_Self], name: str, content: bytes) -> _Self:
        """Validate the JSON of the file ``name``.

        Raises:
            BundleFormatError: names the first field that is wrong.
        """
        return checked(name, cls, parse(name, content))

    def plain(self) -> dict[str, Any]:
        """Its fields, made of JSON's types."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields

    def dump(self) -> bytes:
        """The JSON that `read` reads."""
        return json.dumps(self.plain(), indent=1, ensure_ascii=False).encode() + b"\n"


def parse(name: str, content: bytes) -> Any:
    """A document's value.

    Raises:
        BundleFormatError: the file ``name`` is no JSON in UTF-8.
    """
    try:
        value = json.loads(content.decode())
        msgspec.json.encode(value)  # refuses halves of surrogate pairs, which could never be printed
    except (ValueError, RecursionError) as error:
        raise BundleFormatError(name, "content", "JSON", str(error)[:120]) from None
    return value


def read_parts(name: str, kind: type[_Struct], content: bytes) -> _Struct:
    """What ``kind`` has of a document, without making anything of the rest, which may be large.

    Raises:
        BundleFormatError: the file ``name`` is no JSON, or a part doesn't fit.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except (ValueError, RecursionError):
        return checked(name, kind, parse(name, content))  # which says what is wrong


def checked(name: str, kind: type[_Struct], value: Any, at: str = "") -> _Struct:
    """A document, or the part of it at a path, as what its JSON value stands for.

    Raises:
        BundleFormatError: the value doesn't fit; names the first field that is wrong.
    """
    try:
        return msgspec.convert(value, kind)
    except ValidationError as error:
        field, expected, found = explain(kind, value, str(error))
        raise BundleFormatError(name, f"{at}.{field}".strip(".") or "document", expected, found) from None
    except RecursionError:
        raise BundleFormatError(name, at or "document", "a document of few levels", "more") from None
    except UnicodeEncodeError as error:
        raise BundleFormatError(name, at or "document", "texts in Unicode", repr(error.object)[:80]) from None

"""`Field`: a part of a JSON document that knows its place, so that errors name it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from weightpager.errors import BundleFormatError


@dataclass(frozen=True)
class Field:
    """A value in a document.

    Attributes:
        file: the document's name, for errors.
        place: where in it, such as ``nodes[3].op``.
        value: what is there.
    """

    file: str
    place: str
    value: Any

    def refuse(self, expected: object) -> NoReturn:
        """Raise a `BundleFormatError` that names the place and what was found."""
        raise BundleFormatError(self.file, self.place or "document", expected, repr(self.value)[:80])

    def members(self, *names: str) -> dict[str, Field]:
        """The fields of an object that has exactly these keys."""
        if not isinstance(self.value, dict) or self.value.keys() != set(names):
            found = sorted(self.value) if isinstance(self.value, dict) else self.value
            expected = f"an object of {', '.join(names)}" if names else "an empty object"
            raise BundleFormatError(self.file, self.place or "document", expected, repr(found)[:120])
        return {name: Field(self.file, f"{self.place}.{name}".lstrip("."), self.value[name]) for name in names}

    def items(self, most: int, least: int = 0) -> Iterator[Field]:
        """The entries of a list of bounded length."""
        if not isinstance(self.value, list) or not least <= len(self.value) <= most:
            found = f"{len(self.value)} entries" if isinstance(self.value, list) else repr(self.value)[:80]
            raise BundleFormatError(self.file, self.place, f"a list of {least} to {most} entries", found)
        return (Field(self.file, f"{self.place}[{at}]", each) for at, each in enumerate(self.value))

    def text(self, most: int = 64) -> str:
        """A printable string of at least one and at most so many characters."""
        if not isinstance(self.value, str) or not 0 < len(self.value) <= most or not self.value.isprintable():
            self.refuse(f"a printable string of 1 to {most} characters")
        return self.value

    def one_of(self, *choices: str) -> str:
        """One of these strings."""
        if not isinstance(self.value, str) or self.value not in choices:
            self.refuse(f"one of {', '.join(choices)}")
        return self.value

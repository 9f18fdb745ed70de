"""What a GGUF file says of itself, every bound of it checked before anything else reads the file.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightpager.errors import CompileError, shown

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_LONG = 4096
"""Entries of an array above which they are skipped: vocabularies, which the tokenizer's reader reads."""

_MOST_KEYS, _MOST_TENSORS, _MOST_AXES, _DEEPEST = 2**16, 2**17, 4, 2

_STORED = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 30: ("BF16", 1, 2),
}  # fmt: skip
"""A type's name, the values of a block and its bytes."""


@dataclass(frozen=True)
class GgufHeader:
    """The settings and the tensors' forms.

    Attributes:
        settings: by key; of long arrays their number of entries alone.
        parameters: of all tensors.
        types: how many tensors are stored as each type, by its name.
    """

    settings: Mapping[str, Any]
    parameters: int
    types: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> GgufHeader:
        """Read a file's header. Raises `CompileError` if it is damaged, or stores tensors in an unknown way."""
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Walk(content, str(path)).header()
        except (OSError, ValueError) as error:  # an empty file can't be mapped
            raise CompileError(f"{path}: expected a GGUF file: {error}") from error

    def text(self, key: str) -> str:
        """A setting that is a text; empty where there is none."""
        found = self.settings.get(key, "")
        return found if isinstance(found, str) else ""


class _Walk:
    """Goes over a header; nothing is read that lies behind the file's end."""

    def __init__(self, content: mmap.mmap, where: str) -> None:
        self._content, self._where, self._at = content, where, 0

    def header(self) -> GgufHeader:
        if self._take(4) != _MAGIC:
            raise self._broken("the letters GGUF at its beginning", "others")
        version = self._number("I")
        if version not in _VERSIONS:  # the same in the other order of bytes is a large number
            raise self._broken("version 2 or 3, the first byte of a number first", version)
        tensors, keys = self._number("Q"), self._number("Q")
        if tensors > _MOST_TENSORS or keys > _MOST_KEYS:
            raise self._broken(
                f"at most {_MOST_TENSORS:,} tensors and {_MOST_KEYS:,} keys", f"{tensors:,} and {keys:,}"
            )
        settings = {}
        for _ in range(keys):
            key = self._text()
            settings[key] = self._value(self._number("I"), _DEEPEST)
        forms = [self._tensor() for _ in range(tensors)]
        self._check_data(settings, forms)
        types = Counter(kind for _, kind, _, _ in forms)
        return GgufHeader(settings, sum(count for *_, count, _ in forms), types)

    def _tensor(self) -> tuple[str, str, int, int]:
        """A tensor's name, the name of its type, its number of values, and where its bytes end."""
        name, axes = self._text(), self._number("I")
        if not 0 < axes <= _MOST_AXES:
            raise self._broken(f"1 to {_MOST_AXES} axes of {shown(name)}", axes)
        sizes = [self._number("Q") for _ in range(axes)]
        stored, begin, count = self._number("I"), self._number("Q"), math.prod(sizes)
        if stored not in _STORED:
            known = ", ".join(kind for kind, *_ in _STORED.values())
            raise self._broken(f"{shown(name)} in one of {known}", f"type {stored}")
        kind, values, size = _STORED[stored]
        if count == 0 or sizes[0] % values:
            raise self._broken(f"rows of {shown(name)} in whole blocks of {values} {kind}", sizes[0])
        return name, kind, count, begin + count // values * size

    def _check_data(self, settings: Mapping[str, Any], forms: list[tuple[str, str, int, int]]) -> None:
        aligned = settings.get("general.alignment", 32)
        if not isinstance(aligned, int) or not 0 < aligned <= 2**20 or aligned & (aligned - 1):
            raise self._broken("general.alignment that is a power of two", aligned)
        begin = -(-self._at // aligned) * aligned
        for name, _, _, end in forms:
            if begin + end > len(self._content):
                raise self._broken(f"{shown(name)} to end at byte {len(self._content):,}", f"{begin + end:,}")

    def _value(self, kind: int, deep: int) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _TEXT:
            return self._text()
        if kind != _ARRAY or deep == 0:
            raise self._broken("a setting of a known type", f"type {kind}")
        of, count = self._number("I"), self._number("Q")
        if of in _NUMBERS and count > _LONG:
            self._skip(count * struct.calcsize(_NUMBERS[of]))
            return count
        if count > len(self._content) - self._at:  # an entry has one byte at least
            raise self._broken("an array that ends in the file", f"{count:,} entries")
        entries = []
        for at in range(count):
            entry = self._value(of, deep - 1)
            if at < _LONG:
                entries.append(entry)
        return entries if count <= _LONG else count

    def _text(self) -> str:
        try:
            return self._take(self._number("Q")).decode()
        except UnicodeDecodeError as error:
            raise self._broken("text in UTF-8", str(error)) from error

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack(f"<{form}", self._take(struct.calcsize(form)))
        return value

    def _take(self, size: int) -> bytes:
        begin = self._at
        self._skip(size)
        return self._content[begin : self._at]

    def _skip(self, size: int) -> None:
        if size > len(self._content) - self._at:
            raise self._broken(f"{size:,} bytes from byte {self._at:,} on", f"{len(self._content) - self._at:,}")
        self._at += size

    def _broken(self, expected: str, found: object) -> CompileError:
        return CompileError(f"{self._where}: expected {expected}, found {found}; is it a whole GGUF file?")

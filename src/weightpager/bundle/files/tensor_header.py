"""The header of a safetensors file, checked as safetensors does it: it describes every byte of the file, and once.

safetensors opens files by name only. What has been opened has a name only where ``/proc`` is mounted, and what lies at
its path may be another file by then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip

_METADATA = "__metadata__"
_COUNTS = 1 << 64
"""Numbers in a header, and bytes of a tensor, are less."""

LENGTH = 8
"""Bytes of the header's length, with which a file begins."""

LONGEST = 100_000_000
"""Bytes of the longest header that safetensors takes."""


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of a tensor: numpy's name of its dtype, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"[:80]


Header = Mapping[str, TensorInfo]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor's entry."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def parse_header(start: bytes, size: int) -> tuple[Header, dict[str, int]]:
    """What a header states of each tensor, and where the tensor begins, in bytes from the file's start.

    Args:
        start: the first bytes of the file: the header's length and the header.
        size: bytes of the file.

    Raises:
        ValueError: the file is no safetensors file, or has dtypes that numpy and bfloat16 don't cover.
    """
    length = int.from_bytes(start[:LENGTH], "little")
    if len(start) < LENGTH or length > LONGEST or len(start) != LENGTH + length:
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    entries = _entries(start[LENGTH:])
    _check_offsets(entries, size - len(start))
    header = {name: TensorInfo(_DTYPES[entry.dtype], entry.shape) for name, entry in entries.items()}
    return header, {name: len(start) + entry.data_offsets[0] for name, entry in entries.items()}


def _entries(text: bytes) -> dict[str, _Entry]:
    """The tensors' entries, in the header's order."""
    try:
        document = json.loads(
            text.decode(),
            object_pairs_hook=_each_once,
            parse_int=_count,
            parse_float=_no_count,
            parse_constant=_no_count,
        )
        msgspec.json.encode(document)  # refuses halves of surrogate pairs
    except RecursionError:
        raise ValueError("a header of many levels") from None
    if not isinstance(document, dict):
        raise ValueError("a header that is no JSON object")
    msgspec.convert(document.pop(_METADATA, None), dict[str, str] | None)
    return msgspec.convert(document, dict[str, _Entry])


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. JSON leaves open which of two values of a name counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that is stated twice")
    return found


def _count(digits: str) -> int:
    number = int(digits) if digits.isdigit() and len(digits) <= len(str(_COUNTS)) else _COUNTS
    return number if number < _COUNTS else _no_count(digits)


def _no_count(number: str) -> int:
    raise ValueError(f"the number {number[:40]}, which counts nothing")


def _check_offsets(entries: Mapping[str, _Entry], size: int) -> None:
    """Refuse tensors that leave a gap, overlap, take other bytes than their shape does, or don't fill the file."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        first, until = entry.data_offsets
        if (first, until) != (end, end + _bytes(name, entry)):
            raise ValueError(f"tensor {name[:80]!r} of bytes {first} to {until}, not as many from {end} on as it has")
        end = until
    if end != size:
        raise ValueError(f"tensors of {end} bytes in all, and {size} behind the header")


def _bytes(name: str, entry: _Entry) -> int:
    if entry.dtype not in _DTYPES:
        raise ValueError(f"tensor {name[:80]!r} of dtype {entry.dtype[:40]!r}")
    dtype = _DTYPES[entry.dtype]
    total = 1
    for axis in (*entry.shape, 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize):
        total *= axis
        if total >= _COUNTS:
            raise ValueError(f"tensor {name[:80]!r} of 2^64 values or more")
    return total

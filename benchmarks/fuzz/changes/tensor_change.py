"""Changes of a safetensors file: its header's shapes, dtypes and offsets, its tensors' values."""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.fuzz.changes import byte_change, json_change

_SIZES = {"U8": 1, "I8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
          "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8, "F8_E8M0": 1}  # fmt: skip

_NUMPY = {"U8": "u1", "I8": "i1", "BOOL": "u1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "BF16": "<u2", "I32": "<i4",
          "U32": "<u4", "F32": "<f4", "I64": "<i8", "U64": "<u8", "F64": "<f8"}  # fmt: skip

_INTEGERS = (0, 1, -1, 2, 7, 100, 127, -128, 255, 2**15, 2**31 - 1, -(2**31), 2**30, 2**63 - 1, -(2**63))
_FLOATS = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 3e38, -3e38, 1e-45, 1e30)
_LENGTHS = (0, 1, 2, 7, 8, 100_000_001, 2**31, 2**32, 2**62, 2**63, 2**64 - 9, 2**64 - 1)
_DIMENSIONS = (0, 1, 2, 3, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def change(content: bytes, random: Random) -> tuple[bytes, str]:
    """Another file, and what was done in words."""
    size = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    kinds = ["length", "json", "body"]
    if names:
        kinds += ["shape", "dtype", "offsets", "name", "drop", "add"] + ["value"] * 6
    kind = random.choice(kinds)
    if kind == "length":
        length = random.choice([*_LENGTHS, size - 1, size + 1, size - 8, size + 8, len(content), len(content) - 8])
        return max(0, length).to_bytes(8, "little") + content[8:], f"header of {length} bytes"
    if kind == "json":
        text, words = json_change.change(content[8 : 8 + size], random)
        return _file(text, body), f"header: {words}"
    if kind == "body":
        changed, words = byte_change.change(body, random)
        return content[: 8 + size] + changed, f"data: {words}"
    name = random.choice(names)
    changed, words = body, ""
    if kind == "value":
        changed, words = _value(header[name], body, random)
    elif kind == "drop":
        changed, words = _drop(header, name, body, random)
    elif kind == "add":
        changed, words = _add(header, name, body, random)
    else:
        words = _HEADER[kind](header, name, random)
    return _file(json.dumps(header).encode(), changed), f"{name}: {words}"


def _file(header: bytes, body: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def _shape(header: dict[str, Any], name: str, random: Random) -> str:
    shape = header[name]["shape"]
    count = math.prod(shape)
    choices = [[count, 1], [1, count], [1, *shape], [*shape, 1], [1] * 70 + shape, [], [0], [*shape, 0], [count]]
    choices += [[random.choice(_DIMENSIONS) for _ in range(random.randint(1, 4))] for _ in range(4)]
    header[name]["shape"] = random.choice(choices)
    if math.prod(header[name]["shape"]) == 0 and random.random() < 0.7:
        begin = header[name]["data_offsets"][0]
        header[name]["data_offsets"] = [begin, begin]
    return f"shape {header[name]['shape']} in place of {shape}"


def _dtype(header: dict[str, Any], name: str, random: Random) -> str:
    """Another dtype; most of the time with a shape of as many bytes."""
    tensor = header[name]
    old, new = tensor["dtype"], random.choice(sorted(_SIZES))
    count = math.prod(tensor["shape"]) * _SIZES[old]
    tensor["dtype"] = new
    if random.random() < 0.8 and count % _SIZES[new] == 0:
        tensor["shape"] = [count // _SIZES[new]] if _SIZES[new] != _SIZES[old] else tensor["shape"]
    return f"dtype {new} in place of {old}"


def _offsets(header: dict[str, Any], name: str, random: Random) -> str:
    begin, end = header[name]["data_offsets"]
    other = header[random.choice([key for key in header if key != "__metadata__"])]["data_offsets"]
    choices = [list(other), [end, begin], [begin, end + 1], [begin + 1, end], [begin + 4, end + 4], [0, end - begin]]
    choices += [[random.choice(_LENGTHS), random.choice(_LENGTHS)], [begin, begin], [-1, end], [begin, 2**64]]
    header[name]["data_offsets"] = random.choice(choices)
    return f"offsets {header[name]['data_offsets']} in place of {[begin, end]}"


def _name(header: dict[str, Any], name: str, random: Random) -> str:
    new = random.choice(["", "x", "\0", "__metadata__", name + "x", name.upper(), name[1:], "é" * 50, "n" * 10_000])
    header[new] = header.pop(name)
    return f"called {new[:20]!r}"


_HEADER = {"shape": _shape, "dtype": _dtype, "offsets": _offsets, "name": _name}


def _drop(header: dict[str, Any], name: str, body: bytes, random: Random) -> tuple[bytes, str]:
    begin, end = header.pop(name)["data_offsets"]
    if random.random() < 0.3:
        return body, "gone, its data still there"
    for key, tensor in header.items():
        if key != "__metadata__" and tensor["data_offsets"][0] >= end:
            tensor["data_offsets"] = [offset - (end - begin) for offset in tensor["data_offsets"]]
    return body[:begin] + body[end:], "gone"


def _add(header: dict[str, Any], name: str, body: bytes, random: Random) -> tuple[bytes, str]:
    begin, end = header[name]["data_offsets"]
    new = random.choice(["x", f"{name}x", "base_model.x", "classifier.weight", "lm_head.weight", f"{name}:0"])
    header[new] = header[name] | {"data_offsets": [len(body), len(body) + end - begin]}
    return body + body[begin:end], f"again as {new}"


def _value(tensor: dict[str, Any], body: bytes, random: Random) -> tuple[bytes, str]:
    begin, end = tensor["data_offsets"]
    kind = _NUMPY.get(tensor["dtype"])
    if kind is None or begin == end:
        return body, "unchanged"
    values = np.frombuffer(body[begin:end], kind).copy()
    words = _change_values(values, random)
    return body[:begin] + values.tobytes() + body[end:], words


def _change_values(values: npt.NDArray[Any], random: Random) -> str:
    at, other = random.randrange(len(values)), random.randrange(len(values))
    how = random.choice(["set", "set", "set", "step", "swap", "sort", "reverse", "fill", "roll", "copy"])
    if how in ("set", "fill"):
        value = _number(values.dtype, random)
        values[slice(None) if how == "fill" else at] = value
        return f"{how} {value} at {at}"
    with np.errstate(all="ignore"):
        if how == "step":
            values[at] += np.array(random.choice([1, 3])).astype(values.dtype) * values.dtype.type(1)
        elif how == "swap":
            values[at], values[other] = values[other], values[at]
        elif how == "copy":
            values[at] = values[other]
    if how in ("sort", "reverse", "roll"):
        values[:] = {"sort": np.sort(values), "reverse": values[::-1], "roll": np.roll(values, 1)}[how]
    return f"{how} values at {at} and {other}"


def _number(dtype: np.dtype[Any], random: Random) -> Any:
    if dtype.kind == "f":
        with np.errstate(all="ignore"):
            return np.float64(random.choice(_FLOATS)).astype(dtype)
    return np.array(random.choice(_INTEGERS) % 2**64, np.uint64).astype(dtype)

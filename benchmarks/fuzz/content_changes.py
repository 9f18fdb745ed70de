"""Changes of a file's content: of bytes, of JSON, of tensors."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt


def change_bytes(content: bytes, random: Random) -> tuple[bytes, str]:
    """Other bytes, and what was done in words."""
    how = random.choice([_flip, _flip, _overwrite, _insert, _delete, _truncate, _zero, _repeat])
    changed = bytearray(content)
    words = how(changed, random)
    return bytes(changed), words


def _place(content: bytearray, random: Random) -> int:
    # Headers are at the front: half of the changes go there.
    most = len(content) if random.random() < 0.5 else min(len(content), 300)
    return random.randrange(max(1, most))


def _flip(content: bytearray, random: Random) -> str:
    places = [_place(content, random) for _ in range(random.choice([1, 1, 1, 2, 8]))] if content else []
    for place in places:
        content[place] ^= 1 << random.randrange(8)
    return f"flip bits at {places}"


def _overwrite(content: bytearray, random: Random) -> str:
    at, size = _place(content, random), random.choice([1, 2, 4, 8, 64])
    content[at : at + size] = random.randbytes(min(size, len(content) - at))
    return f"overwrite {size} bytes at {at}"


def _insert(content: bytearray, random: Random) -> str:
    at, size = _place(content, random), random.choice([1, 3, 8, 4096])
    content[at:at] = random.randbytes(size)
    return f"insert {size} bytes at {at}"


def _delete(content: bytearray, random: Random) -> str:
    at, size = _place(content, random), random.choice([1, 3, 8, 4096])
    del content[at : at + size]
    return f"delete {size} bytes at {at}"


def _truncate(content: bytearray, random: Random) -> str:
    at = random.choice([0, 1, 7, 8, 9, len(content) // 2, max(0, len(content) - 1), _place(content, random)])
    del content[at:]
    return f"truncate to {len(content)} bytes"


def _zero(content: bytearray, random: Random) -> str:
    at, size = _place(content, random), random.choice([1, 8, 64, 4096])
    size = min(size, len(content) - at)
    content[at : at + size] = bytes(size)
    return f"zero {size} bytes at {at}"


def _repeat(content: bytearray, random: Random) -> str:
    at, size = _place(content, random), random.choice([1, 8, 64, 1024])
    content[at:at] = content[at : at + size]
    return f"repeat {size} bytes at {at}"


NUMBERS = (
    "0", "-0", "1", "-1", "2", "7", "255", "4000", "65536", "16777216", "2147483647", "2147483648", "4294967295",
    "4294967296", "281474976710655", "9223372036854775807", "9223372036854775808", "18446744073709551615",
    "18446744073709551616", "-9223372036854775809", "1" + "0" * 400, "9" * 5000, "0.5", "1.0", "1e308", "1e999",
    "-1e999", "1e-320", "NaN", "Infinity", "-Infinity",
)  # fmt: skip

STRINGS = (
    '""', '"0"', '"\\u0000"', '"a\\u0000b"', '"\\ud800"', '"\\udfff\\ud800"', '"\\u202e\\u001b[2J"', '"é\\u0301ß中🙂"',
    '"../../etc/passwd"', '"/etc/passwd"', '"//etc/passwd"', '"./manifest.json"', '"tasks/../../x"', '"model/."', '"."',
    '"model"', '"model/config.json"', '"~root"', '"CON"', '"a\\\\b"', '"\\n"', '" "', '"file:///etc/passwd"',
    '"' + "x" * 300 + '"', '"' + "x" * 100_000 + '"', '"' + "d/" * 3000 + 'x"', '"' + "\\u0000" * 1000 + '"',
    '"16x32"', '"8x8"', '"256x256"', '"bfloat16"', '"float32"', '"int8"', '"int4"', '"text-classification"',
    '"language-modeling"', '"token-classification"', '"image-classification"',
)  # fmt: skip

OTHERS = (
    "null", "true", "false", "[]", "{}", "[null]", '[""]', '{"":0}', "[[]]",
    "[" * 100 + "]" * 100, "[" * 5000 + "]" * 5000, '{"a":' * 3000 + "1" + "}" * 3000, "[" * 100_000,
    "[" + "0," * 50_000 + "0]", "{" + ",".join(f'"k{n}":0' for n in range(5000)) + "}",
)  # fmt: skip


class _Raw:
    """JSON texts that no Python value has, behind marks that stand for them in a tree."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, text: str) -> str:
        self._texts.append(text)
        return f"@raw{len(self._texts) - 1}@"

    def dump(self, tree: object) -> bytes:
        text = json.dumps(tree)
        for number, raw in enumerate(self._texts):
            text = text.replace(f'"@raw{number}@"', raw)
        return text.encode("utf-8", "surrogatepass")


def change_json(content: bytes, random: Random) -> tuple[bytes, str]:
    """Another document, and what was done in words."""
    root = [json.loads(content)]
    raw = _Raw()
    words = []
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        parent, key, path = _slot(root, random)
        how = random.choice(_CHANGES)
        words.append(f"{path}: {how(parent, key, random, raw, root)}")
        if not root:
            return b"", "everything is gone"
    return raw.dump(root[0]), "; ".join(words)


def _slot(root: list[Any], random: Random) -> tuple[Any, Any, str]:
    """A place in the tree: its parent, its key there, its path. Each level is as likely as the next."""
    parent, key, path = root, 0, "$"
    while isinstance(parent[key], (dict, list)) and parent[key] and random.random() < 0.85:
        parent = parent[key]
        key = random.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        path += f".{key}"[:80]
    return parent, key, path


def _short(text: str) -> str:
    return text if len(text) < 60 else f"{text[:40]}… ({len(text)} characters)"


def _replace(parent: Any, key: Any, random: Random, raw: _Raw, _: object) -> str:
    text = random.choice(random.choice([NUMBERS, STRINGS, OTHERS]))
    if isinstance(parent[key : key + 1] if isinstance(parent, list) else parent[key], str) and random.random() < 0.5:
        text = random.choice(STRINGS)
    parent[key] = raw.mark(text)
    return f"becomes {_short(text)}"


def _nudge(parent: Any, key: Any, random: Random, raw: _Raw, root: list[Any]) -> str:
    value = parent[key]
    for kind, how in _NUDGES.items():
        if isinstance(value, kind) and (value or not isinstance(value, (list, dict))):
            parent[key] = how(value, random)
            return f"{_short(repr(value))} becomes {_short(repr(parent[key]))}"
    return _replace(parent, key, random, raw, root)


def _other_value(value: float, random: Random) -> float:
    return random.choice([value + 1, value - 1, value * 2, -value, value // 2, value + 4096, value + (1 << 32)])


def _string(value: str, random: Random) -> str:
    at = random.randrange(len(value) + 1)
    letter = random.choice("a0/.\\:\0 \t\u00e9A")
    return random.choice([value[:at] + letter + value[at:], value[:at], value[:at] + value[at + 1 :], value.upper()])


def _list(value: list[Any], random: Random) -> list[Any]:
    at = random.randrange(len(value))
    shuffled = random.sample(value, len(value))
    more = value * random.choice([2, 50])
    return random.choice([value[:at], value[at:], shuffled, [*value, value[at]], more, [value], value[::-1]])


def _dict(value: dict[str, Any], random: Random) -> Any:
    key = random.choice(list(value))
    rest = {name: item for name, item in value.items() if name != key}
    return random.choice([rest, {key: value[key]}, [value], list(value.values()), dict(reversed(value.items()))])


_NUDGES: dict[type, Callable[[Any, Random], Any]] = {
    bool: lambda value, _: not value,
    int: _other_value,
    float: _other_value,
    str: _string,
    list: _list,
    dict: _dict,
}


def _remove(parent: Any, key: Any, *_: object) -> str:
    del parent[key]
    return "is gone"


def _copy(parent: Any, key: Any, random: Random, _: _Raw, root: list[Any]) -> str:
    other, name, path = _slot(root, random)
    parent[key] = copy.deepcopy(other[name])
    return f"becomes a copy of {path}"


def _key(parent: Any, key: Any, random: Random, raw: _Raw, _: object) -> str:
    if not isinstance(parent, dict):
        parent.insert(key, raw.mark(random.choice(OTHERS)))
        return "is preceded by something else"
    text = random.choice([random.choice(STRINGS), json.dumps(key), json.dumps(random.choice(list(parent)))])
    value = parent[key] if random.random() < 0.5 else parent.pop(key)
    parent[raw.mark(text)] = copy.deepcopy(value)
    return f"is also, or only, called {_short(text)}"


_CHANGES: list[Callable[[Any, Any, Random, _Raw, list[Any]], str]]
_CHANGES = [_replace, _replace, _nudge, _nudge, _remove, _copy, _key]
"""Twice what is to be done more often."""


_SIZES = {"U8": 1, "I8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
          "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8, "F8_E8M0": 1}  # fmt: skip

_NUMPY = {"U8": "u1", "I8": "i1", "BOOL": "u1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "BF16": "<u2", "I32": "<i4",
          "U32": "<u4", "F32": "<f4", "I64": "<i8", "U64": "<u8", "F64": "<f8"}  # fmt: skip

_INTEGERS = (0, 1, -1, 2, 7, 100, 127, -128, 255, 2**15, 2**31 - 1, -(2**31), 2**30, 2**63 - 1, -(2**63))
_FLOATS = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 3e38, -3e38, 1e-45, 1e30)
_LENGTHS = (0, 1, 2, 7, 8, 100_000_001, 2**31, 2**32, 2**62, 2**63, 2**64 - 9, 2**64 - 1)
_DIMENSIONS = (0, 1, 2, 3, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def change_tensors(content: bytes, random: Random) -> tuple[bytes, str]:
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
        text, words = change_json(content[8 : 8 + size], random)
        return _file(text, body), f"header: {words}"
    if kind == "body":
        changed, words = change_bytes(body, random)
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
        value = _tensor_number(values.dtype, random)
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


def _tensor_number(dtype: np.dtype[Any], random: Random) -> Any:
    if dtype.kind == "f":
        with np.errstate(all="ignore"):
            return np.float64(random.choice(_FLOATS)).astype(dtype)
    return np.array(random.choice(_INTEGERS) % 2**64, np.uint64).astype(dtype)

"""Changes of a JSON document that leave it JSON, or nearly: keys, types, numbers, depth, strings, paths."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

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


def change(content: bytes, random: Random) -> tuple[bytes, str]:
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


def _number(value: float, random: Random) -> float:
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
    int: _number,
    float: _number,
    str: _string,
    list: _list,
    dict: _dict,
}


def _delete(parent: Any, key: Any, *_: object) -> str:
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
_CHANGES = [_replace, _replace, _nudge, _nudge, _delete, _copy, _key]
"""Twice what is to be done more often."""

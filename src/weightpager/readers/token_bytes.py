"""What each token of a vocabulary stands for, in bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import tokenizers

_SPELLED = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BLANK = "▁"
_OWN = (range(ord("!"), ord("~") + 1), range(ord("¡"), ord("¬") + 1), range(ord("®"), ord("ÿ") + 1))
"""Bytes that byte-level tokenizers write as the character of the same number."""


def _byte_level() -> dict[str, int]:
    """The byte of each character, as GPT-2 writes them: those without a sign of their own come from 256 on."""
    own = [byte for numbers in _OWN for byte in numbers]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_level()


class TokenBytes:
    """The bytes of tokens, as the tokenizer's decoder writes them behind other words.

    Attributes:
        exact: whether texts are these bytes, one behind the other: only then can a grammar say which token may come.
        special: ids of the tokens that a text leaves out.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        steps = set(_steps(json.loads(inner.decoder.__getstate__()))) if inner.decoder is not None else set()
        self._inner, self._level = inner, "ByteLevel" in steps
        self._blank = bool(steps & {"ByteFallback", "Metaspace"})
        self.exact = self._level or "ByteFallback" in steps
        self.special = frozenset(number for number, token in inner.get_added_tokens_decoder().items() if token.special)

    def of(self, token: int) -> bytes:
        """The bytes of one token; those of its name for a special one, and none where the vocabulary has no such."""
        word = self._inner.id_to_token(token)
        if word is None or token in self.special:
            return (word or "").encode()
        if self._level and all(sign in _BYTES for sign in word):
            return bytes(_BYTES[sign] for sign in word)
        if self.exact and (spelled := _SPELLED.fullmatch(word)):
            return bytes([int(spelled[1], 16)])
        return (word.replace(_BLANK, " ") if self._blank else word).encode()


def _steps(decoder: dict[str, Any]) -> Iterator[str]:
    yield decoder["type"]
    for step in decoder.get("decoders", ()):
        yield from _steps(step)

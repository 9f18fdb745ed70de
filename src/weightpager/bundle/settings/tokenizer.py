"""``tokenizer_config.json`` and ``tokenizer.json``: how texts become a model's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from weightpager.bundle.settings.models import Settings, Tokens
from weightpager.errors import BundleFormatError

Side = Literal["left", "right"]


class TokenizerSettings(Settings, frozen=True, kw_only=True):
    """Settings of all tokenizers in ``tokenizer_config.json``. Further ones are kept, and tried."""

    tokenizer_class: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_]{1,100}\Z")] | None = None
    model_max_length: Annotated[int, Meta(ge=1)] | Annotated[float, Meta(ge=1, le=1e300)] | None = None
    max_length: Tokens | None = None
    stride: Tokens | None = None
    pad_to_multiple_of: Tokens | None = None
    padding_side: Side | None = None
    truncation_side: Side | None = None


class _Fixed(Struct):
    strategy: Literal["BatchLongest"] | dict[Literal["Fixed"], Tokens]
    pad_to_multiple_of: Tokens | None = None


class TokenizerFile(Struct):
    """The parts of ``tokenizer.json`` that decide how long a text becomes; the tokenizers library checks the rest."""

    padding: _Fixed | None = None
    normalizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


_MOST_GROWTH = 2**12  # how many times a text may grow in all steps of its normalizer, or of its decoder, together
_GROWTH = {"Precompiled": 32, "NFKC": 18, "NFKD": 18, "NFC": 3, "NFD": 4, "ByteLevel": 2, "Nmt": 1}
"""Characters that a step may make of one."""

_MOST_STEPS = 256

_MOST_AROUND = 2**10  # most tokens that are added around a text
_MOST_PATTERN = 2**12


def check_tokenizer_file(name: str, file: TokenizerFile) -> None:
    """Refuse steps that make a short text much longer.

    Raises:
        BundleFormatError: it does.
    """
    for field in ("normalizer", "decoder"):
        growth = 1
        for number, step in enumerate(_steps(name, field, getattr(file, field))):
            growth *= _growth(name, field, step)
            if growth > _MOST_GROWTH or number >= _MOST_STEPS:
                raise BundleFormatError(name, field, f"texts that grow at most {_MOST_GROWTH} times", "more")
    around = sum(1 + _items(step.get("ids")) for step in _objects(name, "post_processor", file.post_processor))
    if around > _MOST_AROUND:
        raise BundleFormatError(name, "post_processor", f"at most {_MOST_AROUND} tokens around a text", around)


def _items(value: Any) -> int:
    """Length of a list; 0 for anything else, which the library refuses."""
    return len(value) if isinstance(value, list) else 0


def _growth(name: str, field: str, step: dict[str, Any]) -> int:
    """Characters that a step may make of one; the library refuses steps with other types."""
    kind = step.get("type")
    if kind == "Replace":
        pattern, content = step.get("pattern"), str(step.get("content"))
        least = len(str(pattern.get("String", ""))) if isinstance(pattern, dict) else 0
        if isinstance(pattern, dict) and len(str(pattern.get("Regex", ""))) > _MOST_PATTERN:
            raise BundleFormatError(name, field, f"patterns of at most {_MOST_PATTERN} characters", "a longer one")
        return -(-len(content) // max(1, least)) or 1
    if kind == "Prepend":
        return 1 + len(str(step.get("prepend")))
    return _GROWTH.get(str(kind), 2 if kind == "Metaspace" else 1)


def _steps(name: str, field: str, value: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    return (found for found in _objects(name, field, value) if "type" in found)


def _objects(name: str, field: str, value: Any) -> Iterator[dict[str, Any]]:
    """The objects that a value is or has."""
    waiting = [(value, 0)]
    while waiting:
        found, depth = waiting.pop()
        if depth > _MOST_STEPS:
            raise BundleFormatError(name, field, f"at most {_MOST_STEPS} levels", "more")
        if isinstance(found, dict):
            yield found
        inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
        waiting += [(item, depth + 1) for item in inner]

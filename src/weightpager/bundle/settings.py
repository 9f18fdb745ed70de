"""A model's ``config.json`` and its like: checked before a library reads them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from weightpager.bundle.files.strict import checked
from weightpager.bundle.model_settings import (
    GENERATION_KEYS,
    ROPE,
    CommonSettings,
    GenerationSettings,
    ImageSettings,
    ModelSetting,
    RopeSettings,
    TokenizerFile,
    TokenizerSettings,
    check_tokenizer_file,
    rope_of,
    settings_of,
)
from weightpager.errors import BundleFormatError


class _Kind(NamedTuple):
    """Settings whose names match a pattern, and the integers that they may be."""

    names: str
    most: int
    least: int = -(2**10)


_KINDS = (
    _Kind(r"^(max_position_embeddings|vocab_size)$", 2**24, least=1),
    _Kind(r"^num_attention_heads$", 2**12, least=1),
    _Kind(r"^num_hidden_layers$", 2**9, least=1),
    _Kind(r"^num_labels$", 2**16, least=1),
    # The pixels of a side: tables of positions have its square, and tables of pairs of them its fourth power.
    _Kind(r"image_size|img_size", 2**12),
    # Words and their numbers.
    _Kind(r"vocab|token|_index$", 2**26),
    # Tokens that a model looks at.
    _Kind(r"position|length|_len$|ctx|context|window|chunk|seq|bucket|distance|block_size", 2**24),
    # Not counts at all.
    _Kind(r"theta|freq|_base$|seed|floor", 2**40),
    # Sides of matrices.
    _Kind(r"(size|dim|width|channel)s?$", 2**18),
    _Kind(r"expert", 2**15),
    _Kind(r"head|centroid", 2**12),
    # What is built, or gone through, one by one.
    _Kind(
        r"layer|block|stage|depth|group|network|function|hash|level|branch|cycle|pass|loop|repeat|step|iter|recur|"
        r"codebook|quantizer|conv",
        2**9,
    ),
    _Kind(r"", 2**18),
)
"""The first kind whose pattern fits a name is its kind. No honest configuration needs larger numbers. Smaller ones may
still take too much together, which `weightpager.nn.skeleton.empty_on_meta` finds when a module is built."""

_MOST_ITEMS = 2**10  # most values of a list, nested lists included: a configuration has at most one for each layer
_NESTED = 2**9  # the largest integer in a list of lists: it says how often its neighbours are repeated
_INTEGER = re.compile(
    r"^num_\w*(layers|heads|labels|experts|groups|channels|blocks)$|"
    r"(?!pruned_heads$)\w*(_size|_dim|_length|_len|_embeddings|_positions|_heads|_token_ids?|_window)$"
)
"""Settings that are integers, or lists of them, wherever they stand; transformers 4 wrote an object of pruned heads."""

_NUMBER = re.compile(r"^(num|n|max)_\w+$|\w*(_theta|_factor|_eps|_range|_base)$")
"""Settings that are numbers, or lists of them."""

_FLOATS = ("Infinity", "-Infinity")
"""What transformers writes for floats that JSON has no number for, in ``{"__float__": ...}``."""

_MOST_TEXT = 2**14

_MOST_SINUSOIDAL = 2**14


def check_bounds(name: str, values: dict[str, Any]) -> None:
    """Refuse numbers, lists and texts that no honest configuration has, at any depth."""
    for setting in settings_of(name, values):
        kind = next(kind for kind in _KINDS if re.search(kind.names, setting.key))
        wanted = f"an integer of {kind.least} to {kind.most}"
        if not _fits(setting.value, kind) or (setting.key == "__float__" and setting.value not in _FLOATS):
            raise BundleFormatError(name, setting.path, wanted, repr(setting.value)[:80])
        for names, wanted, types in ((_INTEGER, "an integer", (int,)), (_NUMBER, "a number", (int, float))):
            if names.match(setting.key) and not _is_of(types, setting.value):
                raise BundleFormatError(name, setting.path, wanted, repr(setting.value)[:80])
        if _items(setting.value) > _MOST_ITEMS:
            raise BundleFormatError(name, setting.path, f"at most {_MOST_ITEMS} values", "more")
        if "sinusoid" in setting.key and setting.value:
            _check_sinusoidal(name, values)


def _fits(value: Any, kind: _Kind, lists: int = 0) -> bool:
    if isinstance(value, list):
        return bool(value or lists or kind.least < 1) and all(_fits(item, kind, lists + 1) for item in value)
    if isinstance(value, str):
        return len(value) <= _MOST_TEXT
    if isinstance(value, float):
        return not math.isnan(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return True
    return kind.least <= value <= (kind.most if lists < 2 else min(kind.most, _NESTED))


def _items(value: Any) -> int:
    return sum(1 + _items(item) for item in value) if isinstance(value, list) else 0


def _is_of(types: tuple[type, ...], value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_of(types, item) for item in value)
    tagged = float in types and isinstance(value, dict) and "__float__" in value
    return value is None or isinstance(value, types) or tagged


def _check_sinusoidal(name: str, values: dict[str, Any]) -> None:
    """Refuse long sinusoidal tables, which transformers computes row by row in Python."""
    for setting in settings_of(name, values):
        if "position" in setting.key and isinstance(setting.value, int) and setting.value > _MOST_SINUSOIDAL:
            raise BundleFormatError(name, setting.path, f"at most {_MOST_SINUSOIDAL} of sinusoidal ones", setting.value)


CONFIG = "config.json"
GENERATION = "generation_config.json"
IMAGES = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
TOKENIZER = "tokenizer_config.json"
TOKENIZER_FILE = "tokenizer.json"

_DTYPES = (None, "auto", "float16", "bfloat16", "float32", "float64")
_CHOICES: dict[str, tuple[object, ...]] = {"dtype": _DTYPES, "torch_dtype": _DTYPES}


def parse(name: str, content: bytes) -> Any:
    """A document's value."""
    try:
        values = json.loads(content, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise BundleFormatError(name, "content", "JSON", error) from error
    if is_settings(name) and not isinstance(values, dict):
        raise BundleFormatError(name, "content", "a JSON object", type(values).__name__)
    return values


def is_settings(name: str) -> bool:
    """Whether a file holds settings; others hold words."""
    return name.endswith(CONFIG)


def check_settings(name: str, values: Any) -> None:
    """Refuse a document of this name with values that transformers, or this package, can't take."""
    file = name.rpartition("/")[2]
    if file == CONFIG:
        _check_config(name, values)
    elif file == IMAGES:
        _check_images(name, values)
    elif file == PROCESSOR and isinstance(values.get("image_processor"), dict):
        _check_images(name, values["image_processor"])
    elif file == TOKENIZER:
        checked(name, TokenizerSettings, values)
    elif file == TOKENIZER_FILE:
        check_tokenizer_file(name, checked(name, TokenizerFile, values))


def check_choice(name: str, setting: ModelSetting, choices: Mapping[str, tuple[object, ...]]) -> None:
    """Refuse a setting that has none of the values that are allowed for its key, at whatever depth it stands."""
    allowed = choices.get(setting.key)
    if allowed is not None and setting.value not in allowed:
        expected = " or ".join(json.dumps(value) for value in allowed)
        raise BundleFormatError(name, setting.path, expected, repr(setting.value)[:80])


def generation_settings(name: str, values: dict[str, Any]) -> GenerationSettings:
    """Validate how decoders generate; only `GENERATION_KEYS` may be stated."""
    if others := values.keys() - set(GENERATION_KEYS):
        raise BundleFormatError(name, "keys", f"only {', '.join(GENERATION_KEYS)}", ", ".join(sorted(others))[:80])
    return checked(name, GenerationSettings, values)


def _check_images(name: str, values: dict[str, Any]) -> None:
    checked(name, ImageSettings, values)
    for key, value in values.items():
        if key.startswith("do_") and not isinstance(value, (bool, type(None))):
            raise BundleFormatError(name, key, "true or false", repr(value)[:80])


def _check_config(name: str, values: dict[str, Any]) -> None:
    check_bounds(name, values)
    checked(name, CommonSettings, values)
    for setting in settings_of(name, values):
        check_choice(name, setting, _CHOICES)
        if setting.key in ROPE and setting.value is not None:
            if not isinstance(setting.value, dict):
                raise BundleFormatError(name, setting.path, "an object", repr(setting.value)[:80])
            for layers, rope in rope_of(setting.value).items():
                checked(name, RopeSettings, rope, f"{setting.path}.{layers}".strip("."))
        elif setting.key.endswith("_config") and isinstance(setting.value, dict):
            checked(name, CommonSettings, setting.value, setting.path)


def _constant(name: str) -> float:
    """Allow Infinity, a limit in some configurations; refuse NaN, which passes every check of a range."""
    if name == "NaN":
        raise ValueError("expected numbers, found NaN")
    return float(name)

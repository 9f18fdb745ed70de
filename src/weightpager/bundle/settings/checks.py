"""What transformers will read of a model, as JSON: checked before it does, in bundles and in models' directories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from weightpager.bundle.files.strict import checked
from weightpager.bundle.settings.bounds import check_bounds
from weightpager.bundle.settings.models import (
    GENERATION_KEYS,
    ROPE,
    CommonSettings,
    GenerationSettings,
    ImageSettings,
    RopeSettings,
    rope_of,
)
from weightpager.bundle.settings.tokenizer import TokenizerFile, TokenizerSettings, check_tokenizer_file
from weightpager.bundle.settings.walk import Setting, settings_of
from weightpager.errors import BundleFormatError

CONFIG = "config.json"
GENERATION = "generation_config.json"
IMAGES = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
TOKENIZER = "tokenizer_config.json"
TOKENIZER_FILE = "tokenizer.json"

_DTYPES = (None, "auto", "float16", "bfloat16", "float32", "float64")
_CHOICES: dict[str, tuple[object, ...]] = {"dtype": _DTYPES, "torch_dtype": _DTYPES}


def parse(name: str, content: bytes) -> Any:
    """A document's value.

    Raises:
        BundleFormatError: it is no JSON, or has NaN in it; or is one of settings and no object.
    """
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
    """Refuse a document with values that transformers, or this package, can't take.

    Args:
        name: of the file; what is checked follows from its last part.
        values: as `parse` gives them.

    Raises:
        BundleFormatError: it has some.
    """
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


def check_choice(name: str, setting: Setting, choices: Mapping[str, tuple[object, ...]]) -> None:
    """Refuse a setting that has none of the values that are allowed for its key, at whatever depth it stands.

    Raises:
        BundleFormatError: it has another one.
    """
    allowed = choices.get(setting.key)
    if allowed is not None and setting.value not in allowed:
        expected = " or ".join(json.dumps(value) for value in allowed)
        raise BundleFormatError(name, setting.path, expected, repr(setting.value)[:80])


def generation_settings(name: str, values: dict[str, Any]) -> GenerationSettings:
    """Validate how decoders generate; only `GENERATION_KEYS` may be stated.

    Raises:
        BundleFormatError: there are others, or one is out of bounds.
    """
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

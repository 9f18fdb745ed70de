"""Model directories: what their settings ask for, before anything is made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from weightpager.bundle.settings.checks import (
    CONFIG,
    GENERATION,
    IMAGES,
    PROCESSOR,
    TOKENIZER,
    TOKENIZER_FILE,
    check_settings,
    generation_settings,
    is_settings,
    parse,
)
from weightpager.bundle.settings.foreign_code import foreign_code
from weightpager.bundle.settings.models import GENERATION_KEYS, GenerationSettings
from weightpager.compiler.model.checkpoint import call
from weightpager.engine.model.model_types import check_config_class, check_tokenizer_class
from weightpager.errors import BundleFormatError, CompileError

_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p")

_FILES = (CONFIG, TOKENIZER, TOKENIZER_FILE, IMAGES, PROCESSOR)
"""What transformers reads beside weights and words."""

_ADAPTER = "adapter_config.json"


def check_directory(path: Path) -> None:
    """Refuse a directory without a configuration, with code of its own, or with settings that no honest one has.

    Raises:
        CompileError: it is such a one.
    """
    if not path.is_dir():
        raise CompileError(f"{path}: expected a model directory; a hub id must be downloaded first")
    if not (path / CONFIG).is_file():
        raise CompileError(f"{path}: expected a model directory, found no config.json in it")
    if (path / _ADAPTER).is_file():  # transformers would take the model that this names
        raise CompileError(
            f"{path}: expected a whole model, found {_ADAPTER}; merge the adapter into its model "
            "(peft's merge_and_unload), and save that"
        )
    for name in _FILES:
        if (path / name).is_file():
            _check_file(path, name)


def _check_file(path: Path, name: str) -> None:
    values = _checked(path, parse, name, call(path, (path / name).read_bytes))
    if is_settings(name) and (found := _checked(path, foreign_code, name, values)) is not None:
        setting, what = found
        raise CompileError(f"{path / name}: {setting.path} {what}; that is refused: remove it if it isn't needed")
    _checked(path, check_settings, name, values)
    if name == CONFIG:
        _checked(path, check_config_class, name, values)
    if name in (CONFIG, TOKENIZER):
        _checked(path, check_tokenizer_class, name, values)


def _checked(path: Path, check: Callable[..., Any], *arguments: Any) -> Any:
    """What a check of the bundle's format says, as an error about a directory."""
    try:
        return check(*arguments)
    except BundleFormatError as error:
        raise CompileError(f"{path}: cannot be loaded: {error}") from None


def load_generation(path: Path) -> dict[str, Any]:
    """How the directory's decoder goes on unless told otherwise: what a bundle keeps of it; empty if it doesn't say.

    Raises:
        CompileError: it isn't what transformers can read, or out of bounds.
    """
    if not (path / GENERATION).is_file():
        return {}
    _checked(path, parse, GENERATION, call(path, (path / GENERATION).read_bytes))
    found = call(path, GenerationConfig.from_pretrained, path, local_files_only=True).to_dict()
    unused = () if found.get("do_sample") else _SAMPLING  # transformers would refuse to write these
    kept = {key: found[key] for key in GENERATION_KEYS if found.get(key) is not None and key not in unused}
    # Some say so that they have no such word.
    kept = {key: value for key, value in kept.items() if not (key.endswith("_token_id") and value == -1)}
    settings: GenerationSettings = _checked(path, generation_settings, GENERATION, kept)
    return settings.stated()

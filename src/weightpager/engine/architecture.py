"""The transformers classes behind a bundle: configuration, tokenizer, and an empty module for a task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from weightpager.bundle import Bundle, TaskEntry, TaskKind
from weightpager.bundle.files import check_file
from weightpager.bundle.reader import MODEL
from weightpager.errors import BundleFormatError
from weightpager.nn import EmptyOnMeta

CLASSES: dict[TaskKind, Any] = {
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "language-modeling": AutoModelForCausalLM,
}
"""Task kind → the transformers class that runs it."""

BASE = "base_model."
"""Canonical prefix of everything that tasks share; `PreTrainedModel.base_model` of any architecture."""


def model_dir(bundle: Bundle) -> Path:
    """The checked directory of configuration and tokenizer.

    Raises:
        BundleFormatError: a file is damaged, not listed, or asks for code from elsewhere.
    """
    root = bundle.path / MODEL
    listed = {name for name in bundle.manifest.files if name.startswith(f"{MODEL}/")}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(bundle.path).as_posix()
        if path.is_file() and name not in listed:
            raise BundleFormatError(name, "file", "only files that the manifest lists", "an extra file")
    for name in sorted(listed):
        path = check_file(bundle.path, name, bundle.entry(name))
        if path.suffix == ".json" and "auto_map" in _keys(path):
            raise BundleFormatError(name, "auto_map", "no code from elsewhere", "auto_map")
    return root


def empty_module(bundle: Bundle, task: TaskEntry) -> nn.Module:
    """The task's transformers module in eval mode, its weights without memory.

    Raises:
        BundleFormatError: transformers can't build it.
    """
    try:
        config = AutoConfig.from_pretrained(bundle.path / MODEL, **label_names(task))
        with EmptyOnMeta(), quiet_transformers():
            module: nn.Module = CLASSES[task.kind].from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleFormatError(f"{MODEL}/config.json", "architecture", f"one for {task.kind}", error) from error
    return module.eval().requires_grad_(False)


def label_names(task: TaskEntry) -> dict[str, Any]:
    """Configuration values that depend on the task."""
    if not task.classes:
        return {}
    return {
        "num_labels": len(task.classes),
        "id2label": dict(enumerate(task.classes)),
        "label2id": {name: number for number, name in enumerate(task.classes)},
    }


def full_name(module: nn.Module, name: str) -> str:
    """A canonical parameter name as this module calls it."""
    prefix = str(getattr(module, "base_model_prefix", ""))
    return f"{prefix}.{name.removeprefix(BASE)}" if name.startswith(BASE) else name


def tokenizer(bundle: Bundle) -> Any:
    """The bundle's tokenizer, from its own files only."""
    return AutoTokenizer.from_pretrained(model_dir(bundle), local_files_only=True, trust_remote_code=False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers' own, and no reports of what is checked here anyway."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _keys(path: Path) -> set[str]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise BundleFormatError(path.name, "content", "JSON", error) from error
    return set(content) if isinstance(content, dict) else set()

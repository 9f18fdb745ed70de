"""What a model can be compiled for, and why it can't."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel

from weightpager.bundle.format.manifest import TaskKind
from weightpager.engine.model.architecture import CLASSES
from weightpager.errors import CompileError


def check_kind(config: PretrainedConfig, kind: TaskKind, path: Path) -> None:
    """Refuse a model that transformers has no head for.

    Raises:
        CompileError: says what it has heads for instead.
    """
    able = [other for other in CLASSES if type(config) in CLASSES[other]._model_mapping]
    if kind not in able:
        instead = f"it has one for {' and '.join(able)}" if able else "nor for any other kind of task"
        raise CompileError(
            f"{path}: expected a model that can have a head for {kind}, found {config.model_type}, "
            f"for which transformers has none; {instead}{_two_encoders(config)}"
        )


def check_base(model: PreTrainedModel, path: Path) -> None:
    """Refuse a model that isn't a head over a base model, which is what tasks share.

    Raises:
        CompileError: says what was found.
    """
    if model.base_model is model:
        raise CompileError(
            f"{path}: expected a head over one base model, which tasks share, found {type(model).__name__}, whose "
            f"layers lie beside its head{_two_encoders(model.config)}"
        )


def _two_encoders(config: PretrainedConfig) -> str:
    if not (hasattr(config, "text_config") and hasattr(config, "vision_config")):
        return ""
    return ". It is a text and a vision encoder side by side, and tasks of a bundle share one model"

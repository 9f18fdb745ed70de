"""A model's picture tower: the layers that features pass, and how they stand in texts.

A tower's features are hidden states between its layers (LLaVA's, before the last one). Layers that none of them passes
compute what nobody reads. `passed_alone` leaves them out of the configuration, from which all else follows: modules,
pages, the bundle and what is exported of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from weightpager.backends.torch.architecture import (
    BASE,
    TransformersImageReader,
    feature_layers,
    has_picture_tower,
)
from weightpager.bundle.format.manifest import Pictures
from weightpager.bundle.format.picture_tower import TOWER
from weightpager.compiler.model.paged_weights import repeated_layers
from weightpager.compiler.task_file.sections import TowerBlocks
from weightpager.errors import CompileError, shown
from weightpager.readers.picture_reader import PictureReader

LANGUAGE = f"{BASE}language_model."
"""Beginning of the canonical names behind the tower and the connector; a head that isn't tied lies beside them."""

_OF_BACKBONES = ("stage_names", "out_features", "out_indices")
"""What DINOv2's says of all its layers, for others' use: it would contradict fewer layers."""


_CAPTURES = "_output_capturing_hooks_installed"
"""What transformers notes of a model whose hooks are set."""

_OF_TEXTS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Tokens that have another meaning already."""


def passed_alone(config: PretrainedConfig) -> PretrainedConfig:
    """The same configuration, in place, with those of the tower's layers that some feature passes; features stay.

    Raises:
        ValueError: features aren't behind any of its layers, or its pictures have no whole patches.
    """
    if not has_picture_tower(config):
        return config
    _check_patches(config.vision_config)
    layers, tower = feature_layers(config), config.vision_config
    last = max(layers)
    if last == 0:
        raise ValueError("vision_feature_layer: expected features behind some layer of the picture tower, found none")
    changes: dict[str, Any] = {}
    if getattr(tower, "vision_use_head", False):
        changes["vision_use_head"] = False  # it reads what is behind the last layer, for SigLIP's own use
    if last < tower.num_hidden_layers:
        changes["num_hidden_layers"] = last
        if getattr(tower, "tie_last_hidden_states", None) is not None:
            changes["tie_last_hidden_states"] = False  # what was between two layers has passed no norm
    if changes:
        kept = {key: value for key, value in tower.to_dict().items() if key not in _OF_BACKBONES}
        config.vision_config = type(tower).from_dict(kept | changes)
    config.vision_feature_layer = layers[0] if isinstance(config.vision_feature_layer, int) else list(layers)
    return config


def _check_patches(tower: PretrainedConfig) -> None:
    """Refuse a tower that no whole patch fits into.

    Raises:
        ValueError: it is such a one.
    """
    size = tower.image_size
    sides = size if isinstance(size, (list, tuple)) and size else (size,)
    if not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"vision_config.image_size: expected a positive integer, found {shown(size)}")
    patch, most = tower.patch_size, min(sides)
    if not isinstance(patch, int) or not 1 <= patch <= most:
        raise ValueError(f"vision_config.patch_size: expected an integer of 1 to {most}, found {shown(patch)}")


def pictures_of(
    model: PreTrainedModel,
    tokenizer: Any,
    shape: tuple[int, int, int] | None,
    path: Path,
    blocks: TowerBlocks = "shared",
) -> Pictures:
    """How pictures stand in texts, as the module itself says that is asked for a blank one.

    Args:
        model: a task's module.
        tokenizer: of transformers.
        shape: channels, height and width of what the image processor gives; None if they depend on the picture.
        path: of the model, for errors.
        blocks: the manifest's word for whose the tower's are.

    Raises:
        CompileError: pictures become as many features as they like, or the placeholder is no word of both.
    """
    if shape is None:
        raise CompileError(
            f"{path}: expected an image processor that makes one size of all pictures, found one whose size depends on "
            "the picture; state 'crop_size', or a 'size' of height and width"
        )
    blank = torch.zeros(1, *shape, dtype=model.dtype, device=model.device)
    with torch.inference_mode():
        features = model.base_model.get_image_features(blank, return_dict=True).pooler_output
    token_id = int(model.config.image_token_id)
    words = int(model.get_input_embeddings().weight.shape[0])
    token = tokenizer.convert_ids_to_tokens(token_id) if token_id < len(tokenizer) else None
    if not token or token_id >= words or tokenizer.convert_tokens_to_ids(token) != token_id:
        raise CompileError(
            f"{path}: image_token_index: expected a word of the tokenizer and of the model's {words}, found {token_id}"
        )
    if token in {tokenizer.special_tokens_map.get(f"{name}_token") for name in _OF_TEXTS}:
        raise CompileError(
            f"{path}: image_token_index: expected a token for pictures alone, found {token!r}, {token_id}"
        )
    tokens, width = features[0].shape
    layers = sum(f"{BASE}{name}.".startswith(TOWER) for name in repeated_layers(model.base_model))
    return Pictures(blocks=blocks, layers=layers, token=token, token_id=token_id, tokens=tokens, width=width)


def drop_captures(model: PreTrainedModel) -> None:
    """Take away the hooks by which transformers notes hidden states, in place: they can't go to another process.

    They are set again when a tower is next asked for features.
    """
    for module in model.modules():
        for number, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__name__", "") == "output_capturing_hook":
                del module._forward_hooks[number]
        if vars(module).get(_CAPTURES):
            setattr(module, _CAPTURES, False)


def picture_reader(images: TransformersImageReader, pictures: Pictures) -> PictureReader:
    """What reads pictures without transformers, as their image processor does.

    Raises:
        ValueError: it is none that can be read so, or its pixels aren't those that the tower takes.
    """
    reader = PictureReader.of(images.processor.to_dict(), pictures)
    if reader.shape != images.shape:
        raise ValueError(f"expected an image processor that makes pixels {images.shape}, found {reader.shape}")
    return reader


def processor_config(
    config: PretrainedConfig, pictures: Pictures, shape: tuple[int, int, int] | None
) -> dict[str, Any]:
    """What transformers' processor must know to put as many placeholders into a text: ``processor_config.json``.

    It counts whole patches of a picture, adds what else a tower gives, and takes one away by the ``default`` strategy.
    """
    assert shape is not None
    patch, strategy = int(config.vision_config.patch_size), config.vision_feature_select_strategy
    patches = (shape[1] // patch) * (shape[2] // patch)
    return {
        "processor_class": "LlavaProcessor",
        "image_token": pictures.token,
        "patch_size": patch,
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": pictures.tokens + (strategy == "default") - patches,
    }

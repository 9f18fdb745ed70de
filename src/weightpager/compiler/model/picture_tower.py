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
    packs_tiles,
    takes_patches,
    takes_tiles,
)
from weightpager.backends.torch.pictures import features_of, window_of
from weightpager.bundle.format.manifest import PackedTiles, PatchRuns, Pictures, Tiles
from weightpager.bundle.format.picture_tower import TOWER
from weightpager.compiler.model.paged_weights import repeated_layers
from weightpager.compiler.task_file.sections import TowerBlocks
from weightpager.errors import CompileError, shown
from weightpager.readers.packed_tiles import PackedProcessor
from weightpager.readers.patch_processor import CHANNELS, PatchProcessor
from weightpager.readers.picture_reader import PictureReader, check_patches
from weightpager.readers.tile_processor import TileProcessor

LANGUAGE = (f"{BASE}language_model.", f"{BASE}text_model.")
"""Beginnings of the canonical names behind the tower and the connector; a head that isn't tied lies beside them."""

_OF_BACKBONES = ("stage_names", "out_features", "out_indices")
"""What DINOv2's says of all its layers, for others' use: it would contradict fewer layers."""


_OF_RUNS = {"patch_size": 64, "spatial_merge_size": 16, "temporal_patch_size": 8}
"""Settings of a tower of runs of patches, and the most that each may be."""

_MOST_WINDOW = 2**10

_RUN_PROCESSOR = "Qwen2VLProcessor"
_TILE_PROCESSORS = {"idefics3": "Idefics3Processor", "smolvlm": "SmolVLMProcessor"}

_BORDER, _WHOLE_TILE = "<fake_token_around_image>", "<global-img>"
"""What those write around tiles."""

_MOST_SCALE, _MOST_TOKENS = 16, 2**14

_CAPTURES = "_output_capturing_hooks_installed"
"""What transformers notes of a model whose hooks are set."""

_NAMED = "image_token_id"
"""The setting that names the placeholder; some models call it otherwise."""

_OF_TEXTS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Tokens that have another meaning already."""


def passed_alone(config: PretrainedConfig) -> PretrainedConfig:
    """The same configuration, in place, with those of the tower's layers that some feature passes; features stay.

    Raises:
        ValueError: features aren't behind any of its layers, or its pictures have no whole patches.
    """
    if not has_picture_tower(config):
        return config
    if takes_patches(config):
        _check_runs(config)
        return config
    _check_patches(config.vision_config)
    if takes_tiles(config):
        _check_shuffle(config)
        return config
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
    """Refuse a tower that no whole patch fits into. Raises `ValueError`."""
    size = tower.image_size
    sides = size if isinstance(size, (list, tuple)) and size else (size,)
    if not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"vision_config.image_size: expected a positive integer, found {shown(size)}")
    patch, most = tower.patch_size, min(sides)
    if not isinstance(patch, int) or not 1 <= patch <= most:
        raise ValueError(f"vision_config.patch_size: expected an integer of 1 to {most}, found {shown(patch)}")


def _check_shuffle(config: PretrainedConfig) -> None:
    """Refuse a tower whose patches can't be put together in squares. Raises `ValueError`."""
    tower, scale = config.vision_config, config.scale_factor
    if not isinstance(tower.image_size, int):
        raise ValueError(f"vision_config.image_size: expected an integer, found {shown(tower.image_size)}")
    if tower.num_channels != CHANNELS:
        raise ValueError(f"vision_config.num_channels: expected {CHANNELS}, found {shown(tower.num_channels)}")
    side = tower.image_size // tower.patch_size
    if not isinstance(scale, int) or not 1 <= scale <= _MOST_SCALE or side % scale:
        expected = f"expected an integer of 1 to {_MOST_SCALE} that divides a tile's side, {side} patches"
        raise ValueError(f"scale_factor: {expected}, found {shown(scale)}")


def _check_runs(config: PretrainedConfig) -> None:
    """Refuse a tower whose patches can't be cut or merged. Raises `ValueError`."""
    tower = config.vision_config
    for name, most in _OF_RUNS.items():
        found = getattr(tower, name)
        if not isinstance(found, int) or not 1 <= found <= most:
            raise ValueError(f"vision_config.{name}: expected an integer of 1 to {most}, found {shown(found)}")
    if tower.in_channels != CHANNELS:
        raise ValueError(f"vision_config.in_channels: expected {CHANNELS}, found {shown(tower.in_channels)}")
    unit, window = tower.spatial_merge_size * tower.patch_size, getattr(tower, "window_size", None)
    if window is not None and not (isinstance(window, int) and unit <= window <= _MOST_WINDOW * unit):
        expected = f"expected an integer of {unit} to {_MOST_WINDOW * unit}"
        raise ValueError(f"vision_config.window_size: {expected}, found {shown(window)}")
    width, words = getattr(tower, "out_hidden_size", tower.hidden_size), config.get_text_config().hidden_size
    if width != words:
        raise ValueError(f"vision_config: expected features as wide as words, {words}, found {shown(width)}")


def pictures_of(
    model: PreTrainedModel,
    tokenizer: Any,
    images: TransformersImageReader,
    path: Path,
    blocks: TowerBlocks = "shared",
) -> Pictures:
    """How pictures stand in texts, as the module itself says that is asked for a blank one.

    Raises:
        CompileError: pictures become as many features as they like, or the placeholder is no word of both.
    """
    runs = tiles = packed = around = None
    if takes_patches(model.config):
        processor = PatchProcessor(images.processor.to_dict())
        runs, tokens = PatchRuns(merge=processor.merge, window=window_of(model.config.vision_config)), processor.places
        width = int(model.config.get_text_config().hidden_size)
        around = _around(model.config, tokenizer)
    else:
        tokens, width = _blank_features(model, images.shape, path)
    if takes_tiles(model.config):
        tiles = Tiles(places=tokens, border=_BORDER, whole=_WHOLE_TILE)
        tokens *= TileProcessor(images.processor.to_dict()).most
    if packs_tiles(model.config):
        packed = _packed(model.config, PackedProcessor(images.processor.to_dict()), tokens)
        tokens = packed.tokens
    if tokens > _MOST_TOKENS:
        raise CompileError(f"{path}: expected pictures of at most {_MOST_TOKENS} tokens, found {tokens}")
    token_id, setting = int(model.config.image_token_id), model.config.attribute_map.get(_NAMED, _NAMED)
    words = int(model.get_input_embeddings().weight.shape[0])
    token = tokenizer.convert_ids_to_tokens(token_id) if token_id < len(tokenizer) else None
    if not token or token_id >= words or tokenizer.convert_tokens_to_ids(token) != token_id:
        raise CompileError(
            f"{path}: {setting}: expected a word of the tokenizer and of the model's {words}, found {token_id}"
        )
    if token in {tokenizer.special_tokens_map.get(f"{name}_token") for name in _OF_TEXTS}:
        raise CompileError(f"{path}: {setting}: expected a token for pictures alone, found {token!r}, {token_id}")
    layers = sum(f"{BASE}{name}.".startswith(TOWER) for name in repeated_layers(model.base_model))
    return Pictures(
        blocks=blocks, layers=layers, token=token, token_id=token_id, tokens=tokens, width=width, runs=runs,
        tiles=tiles, packed=packed, around=around,
    )  # fmt: skip


def _blank_features(model: PreTrainedModel, shape: tuple[int, int, int] | None, path: Path) -> tuple[int, int]:
    """Tokens and width of a blank picture's features."""
    if shape is None:
        raise CompileError(
            f"{path}: expected an image processor that makes one size of all pictures, found one whose size depends on "
            "the picture; state 'crop_size', or a 'size' of height and width"
        )
    blank = torch.zeros(1, *shape, dtype=model.dtype, device=model.device)
    with torch.inference_mode():
        tokens, width = features_of(model, blank)[0].shape
    return int(tokens), int(width)


def _packed(config: PretrainedConfig, processor: PackedProcessor, features: int) -> PackedTiles:
    """How tiles are put together of which each has so many features, an end of rows included.

    Raises:
        ValueError: the model puts other tiles together than the processor makes, or other features than patches'.
    """
    side, wanted = config.vision_config.image_size, [tuple(size) for size in config.image_grid_pinpoints]
    if processor.side != side:
        raise ValueError(f"expected an image processor that makes tiles of the side {side}, found {processor.side}")
    if processor.sizes != wanted:
        expected = f"expected an image processor with image_grid_pinpoints {shown(wanted)}, as the model has"
        raise ValueError(f"{expected}, found {shown(processor.sizes)}")
    patches = side // config.vision_config.patch_size
    if features != patches**2 + 1:
        expected = f"expected one that gives the features of a tile's {patches**2} patches"
        raise ValueError(f"vision_feature_select_strategy: {expected}, found {features - 1}")
    return PackedTiles(side=side, patches=patches, sizes=processor.sizes)


def _around(config: PretrainedConfig, tokenizer: Any) -> tuple[str, str] | None:
    """The tokens between which the model has learnt to see pictures; none where the tokenizer doesn't know them."""
    found = [
        tokenizer.convert_ids_to_tokens(number) if isinstance(number, int) and 0 <= number < len(tokenizer) else None
        for number in (config.vision_start_token_id, config.vision_end_token_id)
    ]
    return (str(found[0]), str(found[1])) if all(found) else None


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
    """What reads pictures without transformers, as their image processor does. Raises `ValueError` where none fits."""
    reader = PictureReader.of(images.processor.to_dict(), pictures)
    if pictures.runs is not None:
        check_patches(reader, images.vision)
        return reader
    if reader.shape != images.shape:
        raise ValueError(f"expected an image processor that makes pixels {images.shape}, found {reader.shape}")
    return reader


def processor_config(
    config: PretrainedConfig, pictures: Pictures, shape: tuple[int, int, int] | None
) -> dict[str, Any]:
    """What transformers' processor must know to put as many placeholders into a text: ``processor_config.json``.

    It counts whole patches of a picture, adds what else a tower gives, and takes one away by the ``default`` strategy.
    """
    if pictures.runs is not None:
        return {"processor_class": _RUN_PROCESSOR}
    if pictures.tiles is not None:
        return {"processor_class": _TILE_PROCESSORS[config.model_type], "image_seq_len": pictures.places}
    assert shape is not None
    patch, strategy = int(config.vision_config.patch_size), config.vision_feature_select_strategy
    patches, given = (shape[1] // patch) * (shape[2] // patch), pictures.places - (pictures.packed is not None)
    return {
        "processor_class": "LlavaProcessor" if pictures.packed is None else "LlavaNextProcessor",
        "image_token": pictures.token,
        "patch_size": patch,
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": given + (strategy == "default") - patches,
    }

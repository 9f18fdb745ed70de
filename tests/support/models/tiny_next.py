"""Tiny models that put the features of a picture's tiles together: LLaVA-NeXT."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

import tiny_llava
from tiny_llava import PATCH, SIDE, TowerName
from weightpager.backends.torch.architecture import load_image_processor
from weightpager.readers.image_reader import Frame

FamilyName = Literal["next_clip", "next_siglip", "next_dinov2"]
FAMILIES: tuple[FamilyName, ...] = ("next_clip", "next_siglip", "next_dinov2")
"""By their towers."""

IMAGE, PLACEHOLDER, WORDS = tiny_llava.IMAGE, 16, 18
SIZES = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE], [SIDE, 3 * SIDE]]
PATCHES = SIDE // PATCH
"""Of a side of a tile."""
MOST = PATCHES**2 + 2 * PATCHES * (2 * PATCHES + 1)
"""Places of a picture at most."""


def tower_of(family: FamilyName) -> TowerName:
    return cast(TowerName, family.removeprefix("next_"))


def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_llava.tokenizer()


def processor(_family: FamilyName = "next_clip", **more: Any) -> dict[str, Any]:
    """The settings of an image processor, as the family's directories have them."""
    return {
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE},
        "image_grid_pinpoints": SIZES,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    } | more


def config(family: FamilyName = "next_clip", **more: Any) -> LlavaNextConfig:
    values = tiny_llava.config(tower_of(family)).to_dict() | {"image_grid_pinpoints": SIZES}
    values["text_config"]["max_position_embeddings"] = 256
    return LlavaNextConfig(**({key: each for key, each in values.items() if key != "model_type"} | more))


def model(config: LlavaNextConfig, seed: int = 0) -> Any:
    """Random, but of a size at which pictures and words change what follows."""
    torch.manual_seed(seed)
    return tiny_llava.enlarged(LlavaNextForConditionalGeneration(config), "vision_tower", "projector", "newline")


def directory(folder: Path, family: FamilyName = "next_clip", **more: Any) -> Path:
    """A model directory with a tokenizer and an image processor."""
    return tiny_llava.written(folder, model(config(family, **more)), tokenizer(), processor())


def whole_processor(images: Any, tokenizer: Any, family: FamilyName) -> LlavaNextProcessor:
    full = tower_of(family) == "siglip"
    return LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full" if full else "default",
        num_additional_image_tokens=0 if full else 1,
        image_token=IMAGE,
    )


def asked(folder: Path, frames: list[Frame], words: str) -> dict[str, torch.Tensor]:
    """What transformers' processor gives its model of pictures in front of words."""
    known = LlavaNextProcessor.from_pretrained(folder, backend="pil")
    known.image_processor = load_image_processor(folder)
    text = AutoTokenizer.from_pretrained(folder).cls_token + IMAGE * len(frames) + words
    images = [Image.fromarray(each) for each in frames]
    return dict(known(text=[text], images=images, return_tensors="pt", add_special_tokens=False))


def watcher(folder: Path, family: FamilyName = "next_clip", **changes: Any) -> dict[str, Any]:
    """A task file of two tasks, as a mapping."""
    calibration = {"items": 8, "max_length": 60, "batch": 4}
    model = changes.get("model") or str(directory(folder / family, family))
    found = tiny_llava.watcher(folder, **({"calibration": calibration} | changes | {"model": model}))
    for task in found["tasks"].values():
        task["max_length"] = 60
    return found

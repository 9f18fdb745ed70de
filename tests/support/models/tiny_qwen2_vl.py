"""Tiny models whose pictures are runs of patches: Qwen2-VL's family."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

import tiny_llava
from tests.support.models import tiny
from weightpager.backends.torch.architecture import load_image_processor
from weightpager.readers.image_reader import Frame

FamilyName = Literal["qwen2_vl", "qwen2_5_vl"]
FAMILIES: tuple[FamilyName, ...] = ("qwen2_vl", "qwen2_5_vl")

IMAGE, VIDEO, START, END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
PLACEHOLDER, WORDS = 16, 20
PATCH, MERGE, FRAMES = 4, 2, 2
UNIT = PATCH * MERGE
WINDOW = 2
"""Places of a side of the windows in which Qwen2.5-VL's tower looks."""
MOST = 12
"""Places of a picture, at most but for what oblong ones are rounded up to."""

TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }} {% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|> {% else %}{{ part.text }} {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}snow{% endif %}"
)

_FAMILIES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
}


def tokenizer() -> PreTrainedTokenizerFast:
    own = tiny.tokenizer()
    own.add_special_tokens({"additional_special_tokens": [IMAGE, VIDEO, START, END]})
    own.eos_token, own.chat_template = "[SEP]", TEMPLATE
    return own


def processor(**more: Any) -> dict[str, Any]:
    """The settings of an image processor, as the family's directories have them."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 2 * UNIT**2,
        "max_pixels": MOST * UNIT**2,
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": FRAMES,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    } | more


def config(family: FamilyName = "qwen2_vl", *, tied: bool = True, **more: Any) -> PreTrainedConfig:
    text = tiny_llava.TEXT | {
        "vocab_size": WORDS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 2, 3]},
    }
    vision: dict[str, Any] = {
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": FRAMES,
    }
    if family == "qwen2_vl":
        vision |= {"depth": 2, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
    else:
        vision |= {"depth": 3, "hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 40}
        vision |= {"window_size": WINDOW * UNIT, "fullatt_block_indexes": [1]}
    tokens = {
        "image_token_id": PLACEHOLDER,
        "video_token_id": PLACEHOLDER + 1,
        "vision_start_token_id": PLACEHOLDER + 2,
        "vision_end_token_id": PLACEHOLDER + 3,
        "pad_token_id": 0,
    }
    parts = {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}
    return _FAMILIES[family][0](**(parts | tokens | more))


def model(config: PreTrainedConfig, seed: int = 0) -> Any:
    """Random, but of a size at which pictures and words change what follows."""
    torch.manual_seed(seed)
    return tiny_llava.enlarged(_FAMILIES[config.model_type][1](config), ".visual.")


def directory(folder: Path, family: FamilyName = "qwen2_vl", **more: Any) -> Path:
    """A model directory with a tokenizer and an image processor."""
    return tiny_llava.written(folder, model(config(family, **more)), tokenizer(), processor())


def asked(folder: Path, frames: list[Frame], words: str) -> dict[str, torch.Tensor]:
    """What transformers' processor gives its model of pictures in front of words."""
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), load_image_processor(folder)
    shown = processor(images=[Image.fromarray(each) for each in frames], return_tensors="pt")
    text = "".join(f"{START}{IMAGE * int(grid.prod() // MERGE**2)}{END}" for grid in shown["image_grid_thw"])
    ids = torch.tensor([[2, *tokenizer(text + words, add_special_tokens=False)["input_ids"]]])
    return {**shown, "input_ids": ids, "mm_token_type_ids": (ids == PLACEHOLDER).long()}


def watcher(folder: Path, family: FamilyName = "qwen2_vl", **changes: Any) -> dict[str, Any]:
    """A task file of two tasks, as a mapping."""
    more = {"model": str(directory(folder / family, family)), "calibration": {"items": 8, "max_length": 48, "batch": 4}}
    found = tiny_llava.watcher(folder, **(more | changes))
    for task in found["tasks"].values():
        task["max_length"] = 48
    return found


def window_of(family: FamilyName) -> int:
    """Places of a side of the windows in which a family's tower looks; 0 where it has none."""
    return WINDOW if family == "qwen2_5_vl" else 0

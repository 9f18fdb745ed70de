"""Tiny models whose pictures are cut into tiles: Idefics3 and SmolVLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

import tiny_llava
from tests.support.models import tiny
from weightpager.backends.torch.architecture import load_image_processor
from weightpager.readers.image_reader import Frame

FamilyName = Literal["idefics3", "smolvlm", "smolvlm_whole"]
FAMILIES: tuple[FamilyName, ...] = ("idefics3", "smolvlm", "smolvlm_whole")
"""The last one's pictures aren't split: each is one tile."""

IMAGE, BORDER, WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"
A_SIDE = 3
"""Tiles in a row, and in a column, at most."""
MARKS = [f"<row_{row}_col_{column}>" for row in range(1, A_SIDE + 1) for column in range(1, A_SIDE + 1)]
PLACEHOLDER = 16
WORDS = PLACEHOLDER + 3 + len(MARKS)
PATCH, SCALE, SIDE = 4, 2, 16
PLACES = (SIDE // PATCH // SCALE) ** 2
"""Of a tile."""

TEMPLATE = tiny_llava.TEMPLATE

_FAMILIES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], str]] = {
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, "Idefics3ImageProcessor"),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration, "SmolVLMImageProcessor"),
    "smolvlm_whole": (SmolVLMConfig, SmolVLMForConditionalGeneration, "SmolVLMImageProcessor"),
}


def tokenizer() -> PreTrainedTokenizerFast:
    own = tiny.tokenizer()
    own.add_special_tokens({"additional_special_tokens": [IMAGE, BORDER, WHOLE, *MARKS]})
    own.eos_token, own.chat_template = "[SEP]", TEMPLATE
    return own


def processor(family: FamilyName = "idefics3", **more: Any) -> dict[str, Any]:
    """The settings of an image processor, as the family's directories have them."""
    return {
        "image_processor_type": _FAMILIES[family][2],
        "do_image_splitting": family != "smolvlm_whole",
        "do_pad": True,
        "do_convert_rgb": True,
        "size": {"longest_edge": A_SIDE * SIDE},
        "max_image_size": {"longest_edge": SIDE},
        "resample": 1,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    } | more


def config(family: FamilyName = "idefics3", *, tied: bool = True, **more: Any) -> PreTrainedConfig:
    text = tiny_llava.TEXT | {"model_type": "llama", "vocab_size": WORDS, "max_position_embeddings": 256}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    parts = {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied, "scale_factor": SCALE}
    return _FAMILIES[family][0](**(parts | {"image_token_id": PLACEHOLDER, "pad_token_id": 0} | more))


def model(config: PreTrainedConfig, seed: int = 0) -> Any:
    """Random, but of a size at which pictures and words change what follows."""
    torch.manual_seed(seed)
    return tiny_llava.enlarged(_FAMILIES[config.model_type][1](config), ".vision_model.", ".connector.")


def directory(folder: Path, family: FamilyName = "idefics3", **more: Any) -> Path:
    """A model directory with a tokenizer and an image processor."""
    return tiny_llava.written(folder, model(config(family, **more)), tokenizer(), processor(family))


def whole_processor(images: Any, tokenizer: Any, _family: FamilyName) -> Idefics3Processor:
    return Idefics3Processor(images, tokenizer, image_seq_len=PLACES)


def asked(folder: Path, frames: list[Frame], words: str) -> dict[str, torch.Tensor]:
    """What transformers' processor gives its model of pictures in front of words."""
    images = [[Image.fromarray(each) for each in frames]]
    known = whole_processor(load_image_processor(folder), AutoTokenizer.from_pretrained(folder), "idefics3")
    text = known.tokenizer.cls_token + IMAGE * len(frames) + words
    return dict(known(text=text, images=images, return_tensors="pt", add_special_tokens=False))


def watcher(folder: Path, family: FamilyName = "idefics3", **changes: Any) -> dict[str, Any]:
    """A task file of two tasks, as a mapping."""
    more = {
        "model": str(directory(folder / family, family)),
        "calibration": {"items": 8, "max_length": 200, "batch": 4},
    }
    found = tiny_llava.watcher(folder, **(more | changes))
    for task in found["tasks"].values():
        task["max_length"] = 200
    return found

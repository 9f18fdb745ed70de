"""Tiny models that read pictures among their words: every picture tower before every language model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from tests.support.models import tiny

TowerName = Literal["clip", "siglip", "dinov2"]
LanguageName = Literal["llama", "mistral", "qwen2"]
TOWERS: tuple[TowerName, ...] = ("clip", "siglip", "dinov2")
LANGUAGES: tuple[LanguageName, ...] = ("llama", "mistral", "qwen2")

IMAGE = "<image>"
SIDE, PATCH = 28, 14
TOKENS = (SIDE // PATCH) ** 2
TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }} {% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}snow{% endif %}"
)

_TOWERS: dict[str, tuple[type[PreTrainedConfig], str]] = {
    "clip": (CLIPVisionConfig, "CLIPImageProcessor"),
    "siglip": (SiglipVisionConfig, "SiglipImageProcessor"),
    "dinov2": (Dinov2Config, "BitImageProcessor"),
}
_LANGUAGES: dict[str, type[PreTrainedConfig]] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
"""Settings of a language model, without its number of words."""


def tokenizer() -> PreTrainedTokenizerFast:
    own = tiny.tokenizer()
    own.add_special_tokens({"additional_special_tokens": [IMAGE]})
    own.eos_token, own.chat_template = "[SEP]", TEMPLATE
    return own


def processor(tower: TowerName) -> dict[str, Any]:
    """The settings of a tower's image processor, as its family writes them."""
    settings: dict[str, Any] = {
        "image_processor_type": _TOWERS[tower][1],
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 2 if tower == "siglip" else 3,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    if tower == "siglip":
        return settings | {"size": {"height": SIDE, "width": SIDE}}
    cut = {"do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}, "do_convert_rgb": True}
    return settings | cut | {"size": {"shortest_edge": SIDE if tower == "clip" else SIDE + 4}}


def config(
    tower: TowerName = "clip",
    language: LanguageName = "llama",
    *,
    layers: int = 3,
    feature_layer: int | list[int] = -2,
    tied: bool = True,
    **more: Any,
) -> LlavaConfig:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    vision |= {"mlp_ratio": 2} if tower == "dinov2" else {"intermediate_size": 48}
    text = TEXT | {"vocab_size": 18, "tie_word_embeddings": tied}
    settings = {
        "image_token_index": 16,
        "image_seq_length": TOKENS,
        "vision_feature_layer": feature_layer,
        "vision_feature_select_strategy": "full" if tower == "siglip" else "default",
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
    }
    return LlavaConfig(
        vision_config=_TOWERS[tower][0](**vision), text_config=_LANGUAGES[language](**text), **(settings | more)
    )


def model(config: LlavaConfig, seed: int = 0) -> LlavaForConditionalGeneration:
    """Random, but of a size at which pictures and words change what follows."""
    torch.manual_seed(seed)
    return enlarged(LlavaForConditionalGeneration(config), "vision_tower", "projector")


def enlarged(made: Any, *parts: str) -> Any:
    """A model in which the values of these parts are drawn anew, of a size at which pictures change what follows."""
    with torch.no_grad():
        for name, tensor in made.eval().named_parameters():
            if any(part in name for part in parts):
                if tensor.ndim > 1:
                    tensor.normal_(0, 0.2)
                elif not any(kept in name for kept in ("norm", "ln_q", "lambda")):
                    tensor.normal_(0, 0.1)
    made.generation_config.eos_token_id = 3
    return made


def written(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast, processor: dict[str, Any]) -> Path:
    """A model directory with a tokenizer and an image processor of these settings."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


def llava(folder: Path, tower: TowerName = "clip", language: LanguageName = "llama", **more: Any) -> Path:
    """A model directory with a tokenizer and an image processor."""
    return written(folder, model(config(tower, language, **more)), tokenizer(), processor(tower))


def asking(folder: Path, name: str, answer: dict[str, str], items: int = 16, *, chat: bool = False) -> dict[str, Any]:
    """A task that says of a picture's colour what belongs to it; every fourth prompt has no picture, some have two."""
    files = {}
    for split in ("train", "eval"):
        drawn = random.Random(f"{name} {split}")
        rows: list[dict[str, Any]] = []
        for number in range(items):
            colour = list(answer)[number % len(answer)]
            count = (1, 1, 2, 0)[number % 4]
            size = (drawn.randint(20, 60), drawn.randint(20, 60))
            shown = [
                str(
                    tiny.picture(
                        folder / name / f"{split}-{number}-{part}.png", colour, f"{split} {number} {part}", size
                    )
                )
                for part in range(count)
            ]
            images = [str(Path(path).relative_to(folder)) for path in shown]
            asked = " ".join([*drawn.choices(tiny.WORDS, k=drawn.randint(1, 3)), *([] if count else [colour])])
            rows.append(_row(asked, images, answer[colour], chat))
        path = folder / f"{name}.{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files[split] = str(path)
    return {"kind": "text-generation", **files, "max_length": 24, "max_new_tokens": 3}


def _row(asked: str, images: list[str], answer: str, chat: bool) -> dict[str, Any]:
    if not chat:
        several = {"images": images} if images else {}
        return {"prompt": asked, "completion": answer} | ({"image": images[0]} if len(images) == 1 else several)
    parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": asked}]
    return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]}


def watcher(folder: Path, *, pictures: bool = True, **changes: Any) -> dict[str, Any]:
    """A task file of two tasks on a tiny model that reads pictures, as a mapping."""
    first, second = {"red": "cat", "blue": "dog"}, {"green": "one", "red": "two", "white": "three"}
    if pictures:
        tasks = {"animal": asking(folder, "animal", first), "number": asking(folder, "number", second, chat=True)}
    else:
        tasks = {
            "animal": tiny.completing(folder, "animal", first),
            "number": tiny.completing(folder, "number", second),
        }
    content = {
        "model": str(changes.get("model") or llava(folder / "llava")),
        "block": "8x8",
        "page": "4KiB",
        "dtype": "bfloat16",
        "sparsity": 0.4,
        "compare": "none",
        "calibration": {"items": 8, "max_length": 24, "batch": 4},
        "training": {"steps": 12, "batch": 4, "learning_rate": 1e-3},
        "tasks": tasks,
    }
    return content | changes

"""Tiny real models of real architectures, made in the test: random weights, three layers, seconds to compile."""

from __future__ import annotations

import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)

from weightpager.readers.tokenizer import Tokenizer as Reader
from weightpager.readers.tokenizer import read_tokenizer

WORDS = ["red", "green", "blue", "cat", "dog", "cow", "sun", "rain", "snow", "one", "two", "three"]


TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}snow{% endif %}"


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def reader(own: PreTrainedTokenizerFast | None = None) -> Reader:
    """What a device reads of the files that a tokenizer of transformers is saved in."""
    with TemporaryDirectory() as folder:
        (own or tokenizer()).save_pretrained(folder)
        return read_tokenizer(Path(folder))


def bert(folder: Path, seed: int = 0, words: int = 16) -> Path:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=words,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=100,  # no multiple of a block
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def llama(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=2,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def opt(folder: Path, seed: int = 0) -> Path:
    """A decoder that looks its positions up in a table, which has an end."""
    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=16,
        hidden_size=64,
        word_embed_proj_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=96,
        max_position_embeddings=32,
        init_std=0.2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    OPTForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def vit(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        initializer_range=0.2,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 2}
    settings |= {"do_resize": True, "do_rescale": True, "do_normalize": True}
    settings |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255), "black": (0, 0, 0)}


def picture(path: Path, colour: str, seed: object = 0, size: tuple[int, int] = (16, 16)) -> Path:
    """An image of one colour, roughly."""
    drawn = random.Random(f"{colour} {seed}")
    image = Image.new("RGB", size, COLOURS[colour])
    for _ in range(8):
        image.putpixel((drawn.randrange(size[0]), drawn.randrange(size[1])), (128, 128, 128))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def pictures(folder: Path, name: str, colours: list[str], items: int = 24) -> dict[str, str]:
    """A task whose class is told by the colour of an image: training data in a folder, held-out data in rows."""
    for number in range(items):
        colour = colours[number % len(colours)]
        picture(folder / name / colour / f"{number}.png", colour, number)
    rows = []
    for number in range(items):
        colour = colours[number % len(colours)]
        picture(folder / "held-out" / f"{name}-{number}.png", colour, f"held out {number}")
        rows.append({"image": f"held-out/{name}-{number}.png", "label": colour})
    return {
        "kind": "image-classification",
        "train": str(folder / name),
        "eval": _write(folder / f"{name}.eval.jsonl", rows),
    }


def classification(folder: Path, name: str, classes: dict[str, list[str]], items: int = 40) -> dict[str, str]:
    """A task whose class is told by a word."""
    files = {}
    for split in ("train", "eval"):
        drawn = random.Random(f"{name} {split}")
        rows = []
        for number in range(items):
            label = list(classes)[number % len(classes)]
            words = [*drawn.choices(WORDS, k=drawn.randint(2, 6)), drawn.choice(classes[label])]
            drawn.shuffle(words)
            rows.append({"text": " ".join(words), "label": label})
        files[split] = _write(folder / f"{name}.{split}.jsonl", rows)
    return {"kind": "text-classification", **files}


def tagging(folder: Path, name: str, items: int = 40) -> dict[str, str]:
    """A task that tags words as colours or others."""
    files = {}
    for split in ("train", "eval"):
        drawn = random.Random(f"{name} {split}")
        rows = []
        for _ in range(items):
            words = drawn.choices(WORDS, k=drawn.randint(2, 6))
            tags = ["COLOUR" if word in WORDS[:3] else "OTHER" for word in words]
            rows.append({"tokens": words, "tags": tags})
        files[split] = _write(folder / f"{name}.{split}.jsonl", rows)
    return {"kind": "token-classification", **files}


def text(folder: Path, name: str, words: list[str]) -> dict[str, Any]:
    """A language-modeling task over a few words."""
    files = {}
    for split in ("train", "eval"):
        drawn = random.Random(f"{name} {split}")
        path = folder / f"{name}.{split}.txt"
        path.write_text(" ".join(drawn.choices(words, k=400)), encoding="utf-8")
        files[split] = str(path)
    return {"kind": "language-modeling", **files, "max_length": 16}


def completing(
    folder: Path, name: str, answer: dict[str, str], items: int = 40, *, chat: bool = False
) -> dict[str, Any]:
    """A task that says of a prompt's last word what belongs to it."""
    files = {}
    for split in ("train", "eval"):
        drawn = random.Random(f"{name} {split}")
        rows = []
        for number in range(items):
            word = list(answer)[number % len(answer)]
            asked = " ".join([*drawn.choices(WORDS, k=drawn.randint(1, 6)), word])
            said = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer[word]}]
            rows.append({"messages": said} if chat else {"prompt": asked, "completion": answer[word]})
        files[split] = _write(folder / f"{name}.{split}.jsonl", rows)
    return {"kind": "text-generation", **files, "max_length": 16, "max_new_tokens": 4}


def assistant(folder: Path, **changes: Any) -> dict[str, Any]:
    """A task file of four tasks on a tiny encoder, as a mapping. Controls only if a change says so."""
    content = {
        "model": str(bert(folder / "bert")),
        "block": "8x16",
        "page": "4KiB",
        "dtype": "bfloat16",
        "sparsity": 0.6,
        "alignment": 0.0,
        "compare": "none",
        "calibration": {"items": 16, "max_length": 16, "batch": 8},
        "training": {"steps": 16, "batch": 8, "seed": 32},
        "tasks": {
            "animal": classification(folder, "animal", {"cat": ["cat"], "dog": ["dog"]}),
            "weather": classification(folder, "weather", {"sun": ["sun"], "rain": ["rain"], "snow": ["snow"]}),
            "number": classification(folder, "number", {"one": ["one"], "two": ["two"]}),
            "colour": tagging(folder, "colour"),
        },
    }
    return content | changes


def wordy(folder: Path, **changes: Any) -> dict[str, Any]:
    """The assistant on a model with more words than its texts have, whose rows come on demand if large enough."""
    return assistant(folder, model=str(bert(folder / "wordy", words=400)), rows="on-demand") | changes


def writer(folder: Path, **changes: Any) -> dict[str, Any]:
    """A task file of two tasks on a tiny decoder, as a mapping."""
    content = {
        "model": str(changes.get("model") or llama(folder / "llama")),
        "block": "8x8",
        "page": "4KiB",
        "dtype": "bfloat16",
        "sparsity": 0.5,
        "calibration": {"items": 8, "max_length": 16, "batch": 4},
        "tasks": {"animals": text(folder, "animals", WORDS[3:6]), "numbers": text(folder, "numbers", WORDS[9:12])},
    }
    return content | changes


def clerk(folder: Path, **changes: Any) -> dict[str, Any]:
    """A task file of two tasks on a tiny decoder that answer prompts, as a mapping; one reads conversations."""
    more = {"metrics": ["token-f1", "exact-match", "chrf", "rouge-l"]}
    tasks = {
        "after": completing(folder, "after", dict(zip(WORDS[:4], WORDS[4:8], strict=True))) | more,
        "twice": completing(folder, "twice", {word: f"{word} {word}" for word in WORDS[6:9]}, chat=True),
    }
    training = {"steps": 60, "batch": 8, "learning_rate": 1e-2}
    own = tokenizer()
    own.eos_token, own.chat_template = "[SEP]", TEMPLATE
    model = llama(folder / "llama")
    own.save_pretrained(model)
    return writer(folder, model=str(model), tasks=tasks, training=training, sparsity=0.3, compare="none") | changes


def camera(folder: Path, **changes: Any) -> dict[str, Any]:
    """A task file of three tasks on a tiny model of images, as a mapping."""
    content = {
        "model": str(vit(folder / "vit")),
        "block": "8x16",
        "page": "4KiB",
        "dtype": "bfloat16",
        "sparsity": 0.6,
        "calibration": {"items": 16, "batch": 8},
        "training": {"steps": 12, "batch": 8},
        "tasks": {
            "colour": pictures(folder, "colour", ["red", "green", "blue"]),
            "warm": pictures(folder, "warm", ["red", "blue"]),
            "bright": pictures(folder, "bright", ["white", "black"]),
        },
    }
    return content | changes


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)

"""A tiny decoder whose tokenizer joins byte pairs, and tasks for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tiny_models

TEXTS = [
    "the red fox runs over the green hill",
    "the green fox sleeps under the red hill",
    "a runner runs, and the sleeper sleeps; nobody wonders",
    "Grün ist der Hügel, rot ist der Fuchs",
    "under over hill fox 1234 5678 (1, 2) [3, 4]",
]
"""What the whole vocabulary is made from."""

MARKS = ["<s>", "</s>", "<unk>", "<pad>"]
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"


def by_level(more: Sequence[str] = ()) -> tokenizers.Tokenizer:
    """Cuts texts into bytes, as GPT-2 does; marks the end of a text. It is made from ``more`` texts, too."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own = trainers.BpeTrainer(vocab_size=420, special_tokens=MARKS, initial_alphabet=alphabet)
    inner.train_from_iterator([*TEXTS, *more] * 4, own)
    inner.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]),
        ]
    )
    return inner


def by_fallback() -> tokenizers.Tokenizer:
    """Knows some characters, and spells others by bytes, as Llama 2 does."""
    first = tokenizers.Tokenizer(models.BPE())
    first.normalizer = normalizers.Replace(" ", "▁")
    spelled = [f"<0x{number:02X}>" for number in range(256)]
    first.train_from_iterator(TEXTS * 4, trainers.BpeTrainer(vocab_size=420, special_tokens=[*MARKS, *spelled]))
    file = json.loads(first.to_str())
    file["model"]["byte_fallback"] = True
    file["added_tokens"] = file["added_tokens"][: len(MARKS)]  # bytes are none
    inner = tokenizers.Tokenizer.from_str(json.dumps(file))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=False)
    return inner


def tokenizer(inner: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    """With a chat template, and as transformers has it."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=TEMPLATE, **named)


def llama(folder: Path, *, own: PreTrainedTokenizerFast | None = None, **config: Any) -> Path:
    """A decoder with a row of its table for each token; some beyond, as models have that are padded."""
    reads = own or tokenizer(by_level())
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    named = {"bos_token_id": 0, "eos_token_id": [1, 0], "pad_token_id": 3, "tie_word_embeddings": True}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **{"vocab_size": len(reads) + 5, **named, **config}))
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    reads.save_pretrained(folder)
    return folder


def tasks(folder: Path, model: Path) -> dict[str, Any]:
    """A task file, as a mapping: words after words of `TEXTS`, as prompts and as conversations."""
    entries: dict[str, Any] = {}
    for name, word, chat in (("fox", "fox", False), ("hill", "hill", True)):
        for split, count in (("train", 24), ("eval", 8)):
            rows = [_row(f"the {'red' if number % 2 else 'green'} {word}", number % 2, chat) for number in range(count)]
            tiny_models.jsonl(folder / f"{name}.{split}.jsonl", rows)
        files = {split: str(folder / f"{name}.{split}.jsonl") for split in ("train", "eval")}
        entries[name] = {"kind": "text-generation", **files, "max_length": 48, "max_new_tokens": 8}
    return {
        "model": str(model), "block": "8x8", "page": "4KiB", "sparsity": 0.3, "compare": "none", "tasks": entries,
        "calibration": {"items": 8, "max_length": 48, "batch": 4}, "training": {"steps": 4, "batch": 4},
    }  # fmt: skip


def _row(asked: str, which: int, chat: bool) -> dict[str, Any]:
    answer = ("runs", "sleeps")[which]
    if not chat:
        return {"prompt": asked, "completion": answer}
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}

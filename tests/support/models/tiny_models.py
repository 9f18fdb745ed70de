"""Model directories and data files that load in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "un", "##good", "##bad", "a", "film", "the", "one", "two"]


def tokenizer(special: bool = True) -> PreTrainedTokenizerFast:
    """WordPiece over `WORDS`; [CLS] and [SEP] around a text if ``special``."""
    inner = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if not special:
        return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="[SEP]")
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def save(model: PreTrainedModel, folder: Path, special: bool = True) -> Path:
    """A model and a tokenizer as a directory."""
    model.save_pretrained(folder)
    tokenizer(special).save_pretrained(folder)
    return folder


def bert(folder: Path, model: type[PreTrainedModel] = BertModel, seed: int = 0, **config: Any) -> Path:
    """A BERT-like directory, hidden size 64, without a head unless ``model`` has one."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = sizes | {"vocab_size": len(WORDS), "max_position_embeddings": 64} | config
    return save(model(BertConfig(**settings)), folder)


def llama(folder: Path, **config: Any) -> Path:
    """A Llama-like directory with grouped queries and tied embeddings."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    settings = sizes | {"num_key_value_heads": 2, "vocab_size": len(WORDS), "tie_word_embeddings": True} | config
    return save(LlamaForCausalLM(LlamaConfig(**settings)), folder, special=False)


def jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reviews(path: Path, count: int = 24, skip: int = 0) -> Path:
    """Texts whose class is the word that they contain."""
    kinds = ("good", "bad")
    numbers = range(skip, skip + count)
    return jsonl(path, ({"text": "a film " * (n % 5) + kinds[n % 2], "label": kinds[n % 2]} for n in numbers))


def tagged(path: Path, count: int = 16) -> Path:
    """Words and tags; ``ungood`` has two pieces."""
    row = {"tokens": ["the", "film", "ungood"], "tags": ["DET", "NOUN", "ADJ"]}
    return jsonl(path, [row] * count)


def prose(path: Path, words: int = 200) -> Path:
    """Running text."""
    path.write_text(" ".join(("the", "one", "film", "a", "two")[n * n % 5] for n in range(words)), encoding="utf-8")
    return path


def tasks(folder: Path, *kinds: str) -> dict[str, Any]:
    """Entries of a task file for ``text``, ``tokens`` and ``lm``, with their data in ``folder``."""
    makers = {"text": reviews, "tokens": tagged, "lm": prose}
    names = {"text": "text-classification", "tokens": "token-classification", "lm": "language-modeling"}
    entries: dict[str, Any] = {}
    for kind in kinds:
        suffix = "txt" if kind == "lm" else "jsonl"
        for split in ("train", "eval"):
            makers[kind](folder / f"{kind}.{split}.{suffix}")
        entries[kind] = {"kind": names[kind], "train": f"{kind}.train.{suffix}", "eval": f"{kind}.eval.{suffix}"}
    return entries

"""A model in the shape of Qwen2-VL-2B with random weights: its directory, bundles of it, and a file for llama.cpp.

Run as a program it compiles one bundle, ``python -m benchmarks.device.any_size.models MODEL BUNDLE``, and prints as
JSON what that took: ``peak_bytes`` resident, and ``own_peak_bytes`` without mapped files, which needn't be in memory.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.machine.memory import own_memory, peak_memory

TEXT: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
VISION = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
_MARKS = ["<pad>", "<unk>", "<end>", "<image>", "<before>", "<behind>"]
WORDS = [f"w{number}" for number in range(64)]

HALF, ALL = "qwen2-vl-half.bundle", "qwen2-vl-all.bundle"
BUNDLES = {HALF: ("day", "night"), ALL: ("day",)}
"""Tasks by bundle: two with half of the blocks each, and one with all, which needs no data."""

GGUF = "qwen2-1.5b.gguf"


def make_model(folder: Path) -> None:
    """A directory with random values in bfloat16."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
    )

    known = {word: number for number, word in enumerate([*_MARKS, *WORDS])}
    inner = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=_MARKS[3:], **special)
    numbers = {"image_token_id": 3, "vision_start_token_id": 4, "vision_end_token_id": 5, "video_token_id": 1}
    config = Qwen2VLConfig(
        text_config=TEXT, vision_config=VISION, tie_word_embeddings=True, dtype="bfloat16", **numbers
    )
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    model.tie_weights()
    pool = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
    for number, tensor in enumerate(model.parameters()):
        flat = tensor.data.view(-1)
        if tensor.ndim == 1:
            flat.fill_(1.0)
        for start in range(0, len(flat) if tensor.ndim > 1 else 0, len(pool)):
            part = flat[start : start + len(pool)]
            part.copy_(pool.roll(97 * (number + start))[: len(part)])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)


def compile_model(model: Path, bundle: Path) -> dict[str, float]:
    """A bundle of `BUNDLES` in int4; nothing is trained."""
    from weightpager.compiler.pipeline import compile as compile_bundle

    over, own = threading.Event(), [0]

    def watch() -> None:
        while not over.wait(0.1):
            own.append(own_memory() or 0)

    watcher, start = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    with tempfile.TemporaryDirectory() as data:
        compile_bundle(_task_file(model, bundle.name, Path(data)), bundle)
    seconds = time.perf_counter() - start
    over.set()
    watcher.join()
    return {"seconds": seconds, "peak_bytes": peak_memory() or 0, "own_peak_bytes": max(own)}


def _task_file(model: Path, bundle: str, data: Path) -> dict[str, Any]:
    tasks = {name: {"kind": "text-generation"} for name in BUNDLES[bundle]}
    if bundle == ALL:
        return {"model": str(model), "tasks": tasks}
    for part, task in enumerate(tasks):
        for split in ("train", "eval"):
            drawn, file = random.Random(f"{task} {split}"), data / f"{task}.{split}.jsonl"
            words = WORDS[part :: len(tasks)]
            rows = [{"prompt": " ".join(drawn.choices(words, k=48)), "completion": words[0]} for _ in range(8)]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            tasks[task][split] = str(file)
    return {
        "model": str(model),
        "sparsity": 0.5,
        "compare": "none",
        "calibration": {"items": 8, "max_length": 64, "batch": 4},
        "tasks": tasks,
    }


def make_gguf(model: Path, file: Path) -> None:
    """The model's language model for llama.cpp, in float16 and without a tokenizer."""
    import gguf

    writer = gguf.GGUFWriter(file, "qwen2", use_temp_file=True)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(TEXT["vocab_size"])
    writer.add_context_length(TEXT["max_position_embeddings"])
    writer.add_embedding_length(TEXT["hidden_size"])
    writer.add_block_count(TEXT["num_hidden_layers"])
    writer.add_feed_forward_length(TEXT["intermediate_size"])
    writer.add_head_count(TEXT["num_attention_heads"])
    writer.add_head_count_kv(TEXT["num_key_value_heads"])
    writer.add_rope_freq_base(TEXT["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(TEXT["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, TEXT["num_hidden_layers"])
    for name, values in _language_model(model):
        base, _, ending = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(base)}.{ending}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _language_model(model: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Names as of a model without a tower, and values as llama.cpp takes them: matrices in float16."""
    from safetensors import safe_open

    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if "visual." in name:
                    continue
                values = tensors.get_tensor(name).float().numpy()
                plain = name.replace("language_model.", "")
                yield plain, values.astype(np.float16) if values.ndim > 1 else values


if __name__ == "__main__":
    print(json.dumps(compile_model(*map(Path, sys.argv[1:]))))

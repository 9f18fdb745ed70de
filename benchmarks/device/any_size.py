"""Pictures of any size by a model in the shape of Qwen2-VL-2B, with random weights in int4: time and memory.

    python -m benchmarks.device.any_size FOLDER

FOLDER takes 10 GB: the model, which is made once, and its bundle. A process of its own compiles, and another one, by
native code, answers questions about frames of 448 × 448 pixels. Memory is the most that each has had resident; of the
one that compiles, ``own`` is without mapped files, of which it needs none in memory. Nothing here is about accuracy.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from benchmarks.device.processes import environment, smallest_budget
from weightpager.config import format_size
from weightpager.engine import Engine
from weightpager.machine.memory import own_memory, peak_memory

TEXT = {
    "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
VISION = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
WORDS = ["<pad>", "<unk>", "<end>", "<image>", "<before>", "<behind>", "word"]
SIDE, SHOWN = 448, 8
TASK = "chat"


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

    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=WORDS[3:6], **special)
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
    """One task that keeps all blocks, in int4; nothing is trained."""
    from weightpager.compiler.pipeline import compile as compile_bundle

    over, own = threading.Event(), [0]

    def watch() -> None:
        while not over.wait(0.1):
            own.append(own_memory() or 0)

    watcher, start = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    compile_bundle({"model": str(model), "tasks": {TASK: {"kind": "text-generation"}}}, bundle)
    seconds = time.perf_counter() - start
    over.set()
    watcher.join()
    return {"seconds": seconds, "peak_bytes": peak_memory() or 0, "own_peak_bytes": max(own)}


def answer(bundle: Path, budget: str) -> dict[str, Any]:
    """First tokens about frames that weren't seen, and that were; the tower alone; tokens of an answer."""
    random = np.random.default_rng(0)
    frames = [Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)) for _ in range(SHOWN)]
    with Engine.from_pretrained(bundle, backend="native", budget=budget) as engine:

        def seconds(images: list[Image.Image], tokens: int) -> float:
            start = time.perf_counter()
            answered = engine.generate(TASK, "word word word word", images, max_new_tokens=tokens)
            if answered.tokens != tokens:
                raise SystemExit(f"expected an answer of {tokens} tokens, found one of {answered.tokens}")
            return time.perf_counter() - start

        start = time.perf_counter()
        engine.generate(TASK, "word", max_new_tokens=1)
        found: dict[str, Any] = {"s_switch_and_word": time.perf_counter() - start}
        first, again, longer = [], [], []
        for frame in frames:
            first.append(seconds([frame], 1))
            again.append(seconds([frame], 1))
            longer.append(seconds([frame], 17) - again[-1])
        features = engine.report().features
        assert features is not None
        found |= {"s_first_token": median(first), "s_first_token_of_a_seen_frame": median(again)}
        found |= {"s_features": median(np.subtract(first, again)), "tokens_per_s": 16 / median(longer)}
        found |= {"bytes_features": features.bytes // features.kept, "budget": budget}
    return found | {"peak_bytes": peak_memory() or 0}


def main(
    folder: Annotated[Path, typer.Argument(help="For the model and its bundle.")],
    threads: Annotated[int, typer.Option(help="Of the process that answers.")] = 2,
) -> None:
    """Make what isn't there yet, and measure."""
    model, bundle = folder / "model", folder / "qwen2-vl.bundle"
    if not model.is_dir():
        make_model(model)
    if not bundle.is_dir():
        _tell("compile", _run("compile", str(model), str(bundle)))
    _tell("answers", _run("answer", str(bundle), str(smallest_budget(bundle, [TASK])), threads=threads))


def _run(*arguments: str, threads: int = 2) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.device.any_size", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment(threads))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _tell(what: str, found: dict[str, Any]) -> None:
    for name, value in found.items():
        shown = format_size(int(value)) if "bytes" in name or name == "budget" else f"{value:.2f}"
        typer.echo(f"{what}: {name} {shown}")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ("compile", "answer"):
        part = {"compile": compile_model, "answer": answer}[sys.argv[1]]
        given = [Path(sys.argv[2]), Path(sys.argv[3]) if sys.argv[1] == "compile" else sys.argv[3]]
        print(json.dumps(part(*given)))  # type: ignore[operator]
    else:
        typer.run(main)

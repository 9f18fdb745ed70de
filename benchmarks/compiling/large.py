"""A compile of a large model in little memory: Llama-3.2-1B's shape, random weights, two tasks of a few texts.

    python -m benchmarks.compiling.large --json docs/results.json
    python -m benchmarks.compiling.large --json docs/results.json --shape third --memory 3GiB

The model lies in the cache. The command runs in a control group that has no more memory than is stated, page cache
included. Random weights tell of time and memory alone.
"""

from __future__ import annotations

import json as json_file
import random
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import provenance
from benchmarks.report import results_file
from benchmarks.report.results_file import LargeCompileRow
from weightpager.bundle import Bundle
from weightpager.bundle.report.compile_report import read_report
from weightpager.config import cache_dir, parse_size
from weightpager.errors import WeightpagerError
from weightpager_lab.limits.cgroup import LimitedRun, run_limited

SHAPES = {
    "tenth": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
              "num_key_value_heads": 4, "vocab_size": 32000},
    "third": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 16,
              "num_key_value_heads": 4, "vocab_size": 64000},
    "billion": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
"""Llama-3.2-1B's, and smaller ones for a trial."""

_WORDS = 1000


def main(
    json: Annotated[Path, typer.Option(help="File of results to put the row into.")],
    shape: Annotated[str, typer.Option(help=f"Of the model: {', '.join(SHAPES)}.")] = "billion",
    memory: Annotated[str, typer.Option(help="Of the compile, page cache included.")] = "8GiB",
    dtype: Annotated[str, typer.Option(help="Of the pages.")] = "bfloat16",
    recover: Annotated[str, typer.Option(help="none or closed-form.")] = "closed-form",
    compare: Annotated[str, typer.Option(help="What to compare with: none or dense.")] = "none",
    reorder: Annotated[bool, typer.Option(help="Reorder, which takes most of the time.")] = False,
    texts: Annotated[int, typer.Option(help="Of each task, to calibrate on and to measure on.")] = 4,
    tokens: Annotated[int, typer.Option(help="Of a text.")] = 64,
) -> None:
    """Compile once, and measure it."""
    folder = cache_dir() / "benchmarks" / "large"
    model = folder / shape
    if not (model / "config.json").is_file():
        write_model(shape, model)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        task_file = scratch / "tasks.json"  # JSON is YAML
        settings = {"dtype": dtype, "recover": {"method": recover}, "compare": compare, "reorder": reorder}
        settings |= content(model, scratch, texts, tokens)
        task_file.write_text(json_file.dumps(settings), encoding="utf-8")
        bundle = scratch / "large.bundle"
        command = [sys.executable, "-m", "weightpager", "compile", str(task_file), "--out", str(bundle), "--no-cache"]
        run = run_limited(command, memory=parse_size(memory))
        if run.exit_code != 0:
            raise WeightpagerError(f"the compile failed, {run.oom_kills} kills for want of memory: {run.stderr[-400:]}")
        facts = {"shape": shape, "dtype": dtype, "recover": recover, "compare": compare, "reorder": reorder}
        row = measured(Bundle.open(bundle), run, facts | {"texts": texts, "tokens": tokens})
    typer.echo(row.model_dump_json(indent=1))
    results = results_file.read(json)
    rows = [other for other in results.large_compiles if other.key != row.key]
    results_file.write(json, results.model_copy(update={"large_compiles": [*rows, row]}))


def write_model(shape: str, folder: Path) -> None:
    """Write a model directory of random weights in bfloat16, with a tokenizer of a thousand words."""
    config = LlamaConfig(
        **SHAPES[shape], max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=1, eos_token_id=0,
        dtype=torch.bfloat16,
    )  # fmt: skip
    torch.manual_seed(0)
    typer.echo(f"write {folder} …", err=True)
    tokenizer().save_pretrained(folder)
    torch.set_default_dtype(torch.bfloat16)  # else the model takes twice the memory first
    try:
        LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)


def tokenizer() -> PreTrainedTokenizerFast:
    """One that knows ``word0`` and so on."""
    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *(f"word{n}" for n in range(_WORDS))))}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")


def content(model: Path, folder: Path, texts: int, tokens: int) -> dict[str, Any]:
    """The task file's model, calibration and tasks; texts are written into the folder."""
    return {
        "model": str(model),
        "sparsity": 0.5,
        "calibration": {"items": texts, "max_length": tokens, "batch": 1},
        "tasks": {name: _task(folder, name, number, texts, tokens) for number, name in enumerate(("first", "second"))},
    }


def _task(folder: Path, name: str, seed: int, texts: int, tokens: int) -> dict[str, str]:
    """A language-modeling task whose texts use half of the words."""
    drawn = random.Random(seed)
    words = range(seed * _WORDS // 2, (seed + 1) * _WORDS // 2)
    files = {}
    for split in ("train", "eval"):
        path = folder / f"{name}.{split}.jsonl"
        rows = ({"text": " ".join(f"word{drawn.choice(words)}" for _ in range(tokens))} for _ in range(texts))
        path.write_text("".join(json_file.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files[split] = str(path)
    return {"kind": "language-modeling", **files}


def measured(bundle: Bundle, run: LimitedRun, facts: dict[str, Any]) -> LargeCompileRow:
    """The row of a bundle that has just been compiled from these settings."""
    report = read_report(bundle)
    return LargeCompileRow(
        **facts,
        tasks=len(bundle.tasks),
        memory=run.memory.in_force,
        peak_memory=run.peak_memory,
        seconds={stage: round(seconds, 1) for stage, seconds in report.seconds.items()},
        stage_memory=report.peak_memory,
        stage_bound=report.memory_bound,
        command=provenance.command("benchmarks.compiling.large"),
        commit=provenance.commit(),
        cpu=provenance.cpu(),
    )


if __name__ == "__main__":
    typer.run(main)

"""What a LoRA adapter loses by its pages: held-out answers by PEFT in floats, and by the engine.

    python -m benchmarks.accuracy.adapter --task normalise

An adapter of rank 16 is trained on SmolLM2 for one task of domain D. PEFT answers with it over the base as the bundle's
pages give it back: so the rounding of the adapter alone differs, and how products are computed.
"""

from __future__ import annotations

import json
import random
import tempfile
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from weightpager.backends.torch.export import export_task
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler.pipeline import compile as compile_bundle
from weightpager.config import cache_dir
from weightpager_lab.samples import smollm2
from weightpager_lab.samples.narrow_tasks import text_generation

_BATCH, _RATE = 8, 5e-4


def main(
    task: Annotated[str, typer.Option(help="Of domain D.")] = "normalise",
    steps: Annotated[int, typer.Option(help="Of training.")] = 60,
    items: Annotated[int, typer.Option(help="Held-out rows.")] = 100,
    dtype: Annotated[str, typer.Option(help="Of the bundle.")] = "int8",
    most: Annotated[int, typer.Option(help="Tokens of an answer.")] = 24,
) -> None:
    """Train, compile, and compare."""
    cache = cache_dir()
    samples, _ = text_generation(cache, train_items=2000, eval_items=200, report=typer.echo)
    entry = next(sample.entry() for sample in samples if sample.name == task)
    path = smollm2(cache)
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _train(path, tokenizer, _rows(entry["train"]), steps).save_pretrained(folder / "lora")
        added = {"kind": "text-generation", "adapter": str(folder / "lora"), "like": "chat"}
        tasks = {"chat": {"kind": "text-generation", "max_new_tokens": most}}
        tasks[task] = {**added, "eval": str(entry["eval"]), "items": items}
        bundle = compile_bundle({"model": str(path), "dtype": dtype, "tasks": tasks}, folder / "a.bundle")
        (ours,) = read_report(bundle).added
        export_task(bundle, "chat", folder / "dense")
        model = PeftModel.from_pretrained(_model(folder / "dense"), folder / "lora")
        right = [_answer(model, tokenizer, row["prompt"], most) == row["completion"].strip()
                 for row in islice(_rows(entry["eval"]), items)]  # fmt: skip
    typer.echo(f"{task}, {len(right)} rows, {dtype}: PEFT {sum(right) / len(right):.3f}, the engine {ours.sparse:.3f} "
               f"({ours.metric}, interval {ours.sparse_interval})")  # fmt: skip


def _model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def _rows(path: str | Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def _train(path: Path, tokenizer: Any, rows: list[dict[str, str]], steps: int) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(_model(path), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=_RATE)
    drawn = random.Random(0)
    for step in range(1, steps + 1):
        texts = []
        for row in drawn.sample(rows, _BATCH):
            prompt, answer = (tokenizer(row[key]).input_ids for key in ("prompt", "completion"))
            answer.append(tokenizer.eos_token_id)
            texts.append((prompt + answer, [-100] * len(prompt) + answer))
        longest = max(len(ids) for ids, _ in texts)
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in texts])
        labels = torch.tensor([wanted + [-100] * (longest - len(wanted)) for _, wanted in texts])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            typer.echo(f"step {step}: loss {loss.item():.3f}", err=True)
    return model


@torch.inference_mode()
def _answer(model: Any, tokenizer: Any, prompt: str, most: int) -> str:
    given = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**given, max_new_tokens=most, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    text: str = tokenizer.decode(ids[0, given.input_ids.shape[1] :], skip_special_tokens=True)
    return text.strip()


if __name__ == "__main__":
    typer.run(main)

"""How far the bundle of a GGUF file writes the tokens that llama.cpp writes from the file itself, greedily.

    python -m benchmarks.device.gguf_tokens FILE --prompts normalise.eval.jsonl --dtype float32

Prompts are the first of a file of rows, as they are, without a chat template. Each answer is compared up to the first
token that differs: rounding decides where two words are about as likely, and all behind is another text. With
``--rank 8`` answers are those of a task with a random LoRA of that rank on all weights, which llama.cpp reads as
`export` writes it; how many answers it changes is said, too. Needs ``pip install llama-cpp-python``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer

from benchmarks.device.adapters.made import made, write_peft
from weightpager.answers.model import Integers, TaskModel
from weightpager.backends.torch.gguf_lora import export_lora
from weightpager.bundle.addition import Addition, add_task
from weightpager.compiler.pipeline import compile as compile_bundle
from weightpager.engine import Engine

_THEIRS = """
import json, sys
from itertools import islice
from benchmarks.device.llama_cpp_model import LlamaModel
path, most, *lora = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
model = LlamaModel(path)
context = model.context(1024, 1)
if lora:
    model.use(context, model.adapter(lora[0]))
for line in sys.stdin:
    ids = model.ids(json.loads(line))
    print(json.dumps([ids.tolist(), list(islice(model.grow(context, ids), most))]), flush=True)
"""


def main(
    file: Annotated[Path, typer.Argument(help="GGUF file.")],
    prompts: Annotated[Path, typer.Option(help="Rows with a `prompt` each.")],
    dtype: Annotated[str, typer.Option(help="Of the bundle.")] = "float32",
    count: Annotated[int, typer.Option(help="Of prompts.")] = 64,
    most: Annotated[int, typer.Option(help="Tokens of an answer.")] = 32,
    rank: Annotated[int, typer.Option(help="Of a random LoRA; 0 for none.")] = 0,
    size: Annotated[float, typer.Option(help="Of the LoRA's B.")] = 0.02,
) -> None:
    """Compare greedy tokens."""
    rows = [json.loads(line)["prompt"] for line in islice(prompts.open(encoding="utf-8"), count)]
    with tempfile.TemporaryDirectory() as folder:
        content = {"model": str(file), "dtype": dtype, "tasks": {"chat": {"kind": "text-generation"}}}
        bundle, lora = compile_bundle(content, Path(folder) / "a.bundle"), []
        if rank:
            adapter = write_peft(made(bundle, 0, rank, size=size), Path(folder) / "lora")
            bundle = add_task(bundle.path, Addition("lora", adapter))
            lora = [str(export_lora(bundle, "lora", Path(folder) / "lora.gguf"))]
        with Engine.from_pretrained(bundle.path) as engine:
            reader, begins = engine.tokenizer(), bundle.task("chat").add_bos_token
            asked = [np.array([reader.prompt(row, bos=begins)]) for row in rows]
            plain, *others = [_answers(engine, task, asked, most) for task in bundle.tasks]
        command = [sys.executable, "-c", _THEIRS, str(file), str(most), *lora]
        given = "\n".join(map(json.dumps, rows))
        said = subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout
    ours = others[0] if others else plain
    theirs = [json.loads(line) for line in said.splitlines()]
    read = sum(ids[0].tolist() == other[0] for ids, other in zip(asked, theirs, strict=True))
    alike = [_alike(own, other[1]) / most for own, other in zip(ours, theirs, strict=True)]
    typer.echo(f"{read} of {len(rows)} prompts are the same tokens")
    typer.echo(
        f"{dtype}: of {most} tokens the median answer has {median(alike):.2f} before the first that differs, the mean "
        f"{np.mean(alike):.2f}; {alike.count(1)} answers are the same"
    )
    if others:
        changed = sum(one != other for one, other in zip(plain, ours, strict=True))
        typer.echo(f"the LoRA of rank {rank} changes {changed} answers")


def _answers(engine: Engine, task: str, asked: Sequence[Integers], most: int) -> list[list[int]]:
    with engine.task(task):
        return [_grown(engine.model(task), ids, most) for ids in asked]


def _grown(model: TaskModel, ids: Integers, most: int) -> list[int]:
    reading, found = model.reading(1, ids.shape[1] + most), ids
    for _ in range(most):
        token = reading.next(found, np.ones_like(found), None)
        found = np.concatenate([found, token[:, None]], 1)
    grown: list[int] = found[0, ids.shape[1] :].tolist()
    return grown


def _alike(ours: list[int], theirs: list[int]) -> int:
    """How many tokens both begin with."""
    return next((at for at, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other), len(ours))


if __name__ == "__main__":
    typer.run(main)

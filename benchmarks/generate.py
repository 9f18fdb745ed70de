"""A language model of half a billion parameters through transformers, dense and paged: prefill and greedy decoding.

    python -m benchmarks.generate --json generate.json

The weights are random numbers: this is about speed. Embeddings, and the head that is tied to them, are dense in both.
At the end of a prefill torch copies all of the head's weight, which our engine's `FlatLinear` avoids: ``body`` is the
prefill without the head, where only paging makes the difference.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from transformers import Qwen2ForCausalLM

from benchmarks.kernels import Row, replace_rows
from benchmarks.synthetic import PAGE_BYTES, BlockTables, Variant, filled_arena
from weightpager import kernels
from weightpager.bench.synthetic_bundle import half_billion_config
from weightpager.nn import FlatLinear, PagedLinear, fuse_gated_mlps
from weightpager.runtime.task_gate import TaskGate

PREFILL = 512
DECODED = 24

VARIANTS = (
    Variant((16, 32), torch.bfloat16, 0.5),
    Variant((16, 32), torch.bfloat16, 0.75),
    Variant((16, 32), torch.int8, 0.5),
    Variant((16, 32), torch.int8, 0.75),
)


def main(
    json: Annotated[Path, typer.Option(help="File to write the rows to.")],
    repeats: Annotated[int, typer.Option(help="Times that everything is measured.")] = 5,
) -> None:
    """Measure prefill and decoding."""
    models: dict[Variant | None, Qwen2ForCausalLM] = {None: dense_model()}
    models |= {variant: paged_model(models[None], variant) for variant in VARIANTS}
    rows = []
    for kernel, tokens, run in (("prefill", PREFILL, prefill), ("body", PREFILL, body), ("decode", DECODED, decode)):
        before = kernels.calls().get(kernels.isa(), 0)
        seconds = timed(models, run, repeats)
        assert kernels.calls()[kernels.isa()] > before, "the paged kernel must have run"
        rows += [row(kernel, tokens, variant, seconds) for variant in VARIANTS]
    for found in rows:
        typer.echo(
            f"{found.kernel:8} {found.shape} {found.block} {found.dtype:9} {found.sparsity:4.0%}  {found.ms:8.2f} ms, "
            f"dense {found.dense_ms:8.2f}: {found.speedup:.2f} x"
        )
    replace_rows(json, rows)


def row(kernel: str, tokens: int, variant: Variant, seconds: dict[Variant | None, list[float]]) -> Row:
    """Of one variant; times are those of one token when decoding."""
    each = tokens if kernel == "decode" else 1
    ms, dense_ms = (1e3 * statistics.median(seconds[key]) / each for key in (variant, None))
    return Row(
        kernel=kernel,
        isa=kernels.isa(),
        shape="Qwen2.5-0.5B",
        block="x".join(map(str, variant.block)),
        dtype=str(variant.dtype).removeprefix("torch."),
        sparsity=variant.sparsity,
        tokens=tokens,
        ms=round(ms, 3),
        dense_ms=round(dense_ms, 3),
        prepacked_ms=None,
        speedup=round(statistics.median(a / b for a, b in zip(seconds[None], seconds[variant], strict=True)), 3),
        gbps=None,
        read_gbps=None,
    )


def dense_model() -> Qwen2ForCausalLM:
    """The shape of Qwen2.5-0.5B, in bfloat16."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(half_billion_config()).to(torch.bfloat16).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None
    return model


def paged_model(dense: Qwen2ForCausalLM, variant: Variant) -> Qwen2ForCausalLM:
    """The same with its layers' weights paged; everything else is shared."""
    memo = {id(tensor): tensor for tensor in dense.parameters()}
    model = copy.deepcopy(dense, memo)
    linears = {name: module for name, module in model.model.layers.named_modules() if isinstance(module, nn.Linear)}
    tables = {name: BlockTables.draw(of.out_features, of.in_features, variant) for name, of in linears.items()}
    arena = filled_arena(sum(table.pages for table in tables.values()) * PAGE_BYTES)
    slots = torch.split(torch.randperm(len(arena)).int(), [table.pages for table in tables.values()])
    gate = TaskGate("benchmark")
    gate.hold()
    for (name, old), pages in zip(linears.items(), slots, strict=True):
        bias = None if old.bias is None else old.bias.data
        paged = PagedLinear(tables[name].weight(arena, pages), bias, int(name.split(".")[0]), gate)
        model.model.layers.set_submodule(name, paged)
    model.lm_head = FlatLinear.of(model.lm_head)
    assert fuse_gated_mlps(model) == dense.config.num_hidden_layers, "as the engine does it"
    return model


def prefill(model: Qwen2ForCausalLM) -> None:
    """One forward of the whole prompt, with the logits of its last token."""
    ids = torch.arange(PREFILL)[None] % 1000
    model(input_ids=ids, logits_to_keep=1)


def body(model: Qwen2ForCausalLM) -> None:
    """The same without the head."""
    model.model(input_ids=torch.arange(PREFILL)[None] % 1000)


def decode(model: Qwen2ForCausalLM) -> None:
    """Greedy decoding after a short prompt."""
    ids = torch.arange(16)[None]
    model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=DECODED)


def timed(
    models: dict[Variant | None, Qwen2ForCausalLM], run: Callable[[Qwen2ForCausalLM], None], repeats: int
) -> dict[Variant | None, list[float]]:
    """Seconds of a run; the models take turns."""
    found: dict[Variant | None, list[float]] = {key: [] for key in models}
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for key, model in models.items():
                start = time.perf_counter()
                run(model)
                if repeat:  # the first one warms up
                    found[key].append(time.perf_counter() - start)
    return found


if __name__ == "__main__":
    typer.run(main)

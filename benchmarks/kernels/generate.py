"""A language model of half a billion parameters through transformers, dense and paged: prefill and greedy decoding.

    python -m benchmarks.kernels.generate --json generate.json

The weights are random numbers: this is about speed. Embeddings, and the head that is tied to them, are dense in both.
At the end of a prefill torch copies all of the head's weight, which our engine's `FlatLinear` avoids: ``body`` is the
prefill without the head, and decoding is timed from the second token on, where only paging makes the difference. All
models take turns, and so do these; yet compare within a row, not one row with another.
"""

from __future__ import annotations

import copy
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.kernels.__main__ import (
    BLOCK,
    PAGE_BYTES,
    BlockTables,
    Row,
    Variant,
    filled_arena,
    paged_kernel_runs,
    replace_rows,
)
from weightpager import kernels
from weightpager.nn.experts import fuse_gated_mlps
from weightpager.nn.linear import FlatLinear, PagedLinear
from weightpager.runtime.paging.residency import TaskGate
from weightpager_lab.synthetic_bundle import half_billion_config
from weightpager_lab.timing import in_turns, median_ms, ratio, seconds_of

PREFILL = 512
DECODED = 24

VARIANTS = (
    Variant(BLOCK, "bfloat16", 0.5),
    Variant(BLOCK, "bfloat16", 0.75),
    Variant(BLOCK, "int8", 0.5),
    Variant(BLOCK, "int8", 0.75),
)


def main(
    json: Annotated[Path, typer.Option(help="File to write the rows to.")],
    repeats: Annotated[int, typer.Option(help="Times that everything is measured.")] = 5,
) -> None:
    """Measure prefill and decoding."""
    models: dict[Variant | None, Qwen2ForCausalLM] = {None: dense_model()}
    models |= {variant: paged_model(models[None], variant) for variant in VARIANTS}
    rows = []
    with paged_kernel_runs():
        found = timed(models, repeats)
    for kernel, tokens in (("prefill", PREFILL), ("body", PREFILL), ("decode", DECODED)):
        rows += [row(kernel, tokens, variant, found[kernel]) for variant in VARIANTS]
    for of in rows:
        typer.echo(
            f"{of.kernel:8} {of.shape} {of.block} {of.dtype:9} {of.sparsity:4.0%}  {of.ms:8.2f} ms, "
            f"dense {of.dense_ms:8.2f}: {of.speedup:.2f} x"
        )
    replace_rows(json, rows, "benchmarks.kernels.generate")


def row(kernel: str, tokens: int, variant: Variant, seconds: dict[Variant | None, list[float]]) -> Row:
    """Of one variant; times are those of one token when decoding."""
    each = tokens if kernel == "decode" else 1
    ms, dense_ms = (median_ms(seconds[key]) / each for key in (variant, None))
    return Row(
        kernel=kernel,
        isa=kernels.isa(),
        shape="Qwen2.5-0.5B",
        block=str(variant.block),
        dtype=str(variant.dtype).removeprefix("torch."),
        sparsity=variant.sparsity,
        tokens=tokens,
        ms=round(ms, 3),
        dense_ms=round(dense_ms, 3),
        prepacked_ms=None,
        speedup=round(ratio(seconds[None], seconds[variant]).median, 3),
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


def prefill(model: Qwen2ForCausalLM) -> float:
    """Seconds of one forward of the whole prompt, with the logits of its last token."""
    return seconds_of(lambda: model(input_ids=torch.arange(PREFILL)[None] % 1000, logits_to_keep=1))


def body(model: Qwen2ForCausalLM) -> float:
    """The same without the head."""
    return seconds_of(lambda: model.model(input_ids=torch.arange(PREFILL)[None] % 1000))


def decode(model: Qwen2ForCausalLM) -> float:
    """Seconds of greedy decoding, behind a short prompt and the first token, which comes with the prompt's forward."""
    ids, clock = torch.arange(16)[None], _Clock()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=1 + DECODED,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    return clock.times[DECODED] - clock.times[0]


class _Clock(StoppingCriteria):  # type: ignore[misc]
    """Notes when each token has come; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # noqa: ARG002
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def timed(models: dict[Variant | None, Qwen2ForCausalLM], repeats: int) -> dict[str, dict[Variant | None, list[float]]]:
    """Seconds of prefill, body and decoding; they take turns, and so do the models."""
    ways = (prefill, body, decode)
    runs = {(run.__name__, key): partial(run, model) for key, model in models.items() for run in ways}
    with torch.inference_mode():
        found = in_turns(runs, repeats)
    return {name: {key: found[name, key] for key in models} for name in [run.__name__ for run in ways]}


if __name__ == "__main__":
    typer.run(main)

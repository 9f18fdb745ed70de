"""A mixture of experts, paged in whole experts or in blocks of them: memory, switches and speed.

    python -m benchmarks.experts --folder /tmp/mixture --json experts.json

The shape is OLMoE's: 16 layers of 64 experts, of which a token goes to 8; 6.9 billion parameters, of which a token uses
1.3. The weights are random numbers, so this says nothing about accuracy. Both bundles keep the same share of the blocks
in int4, and a task has half of its experts, or of its blocks, in common with all others. Each is measured in processes
of its own, in turns, under the smallest budget that holds one task. Switches are direct reads. The bundles take 4 GB,
and stay in the folder.
"""

from __future__ import annotations

import gc
import json as json_format
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from transformers import OlmoeConfig

import weightpager as wp
from benchmarks import row_file
from benchmarks.kernels.__main__ import paged_kernel_runs
from benchmarks.row_file import command, commit
from weightpager.backends.torch.generation import CACHE
from weightpager.blocks import BlockShape
from weightpager.bundle import Bundle
from weightpager.bundle.files.new_directory import scratch
from weightpager.bundle.footprint import footprint
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.selection.experts import expert_layers, experts_kept
from weightpager.compiler.training.masks import Keep
from weightpager.config import EngineConfig
from weightpager.errors import WeightpagerError
from weightpager.kernels import isa
from weightpager.machine.memory import forget_peak, peak_memory
from weightpager.runtime.budget import smallest_budget
from weightpager_lab.synthetic_bundle import drawn, model_of_few_numbers, source_of, write_source
from weightpager_lab.timing import in_turns, median_ms, seconds_of, time_switches

UNITS = ("whole", "blocks")
SPARSITY, COMMON = 0.7, 0.5
PREFILL, DECODED = 64, 16
POOL = 2**27
"""Random numbers that all parameters are pieces of: 27 GB would be too many."""


def main(
    folder: Annotated[Path, typer.Option(help="Where the bundles are, or are written first: 4 GB.")],
    json: Annotated[Path | None, typer.Option(help="File to write the figures to.")] = None,
    layers: Annotated[int, typer.Option(help="Of the model; fewer for a try.")] = 16,
    tasks: Annotated[int, typer.Option(help="Of each bundle.")] = 3,
    repeats: Annotated[int, typer.Option(help="Processes of each bundle.")] = 3,
    measure: Annotated[Path | None, typer.Option(help="Measure one bundle in this process.", hidden=True)] = None,
) -> None:
    """Write what isn't there yet, and measure it."""
    if measure is not None:
        typer.echo(json_format.dumps(measured(Bundle.open(measure))))
        return
    paths = {unit: folder / f"{unit}-{layers}-{tasks}.bundle" for unit in UNITS}
    for unit, path in paths.items():
        if not path.is_dir():
            typer.echo(f"write {path.name} …")
            folder.mkdir(parents=True, exist_ok=True)
            write(unit, layers, tasks, path)
    found: dict[str, list[dict[str, Any]]] = {unit: [] for unit in UNITS}
    for _ in range(repeats):
        for unit, path in paths.items():
            own = [sys.executable, "-m", "benchmarks.experts", "--folder", str(folder), "--measure", str(path)]
            done = subprocess.run(own, check=False, capture_output=True, text=True)
            if done.returncode:
                raise WeightpagerError(f"{path}: could not be measured: {done.stderr[-500:]}")
            found[unit].append(json_format.loads(done.stdout.splitlines()[-1]))
    rows = {unit: _medians(of) for unit, of in found.items()}
    for unit, row in rows.items():
        typer.echo(unit)
        for name, value in row.items():
            typer.echo(f"  {name:24} {value:,.2f}" if isinstance(value, float) else f"  {name:24} {value}")
    if json is not None:
        facts = {"command": command("benchmarks.experts"), "commit": commit(), "layers": layers, "tasks": tasks}
        row_file.write_json(json, {**facts, "runs": found, "medians": rows})


def write(unit: str, layers: int, tasks: int, path: Path) -> None:
    """A bundle of random values whose tasks keep whole experts, or as large a share of all blocks."""
    names = [f"task-{number}" for number in range(tasks)]
    with scratch(path.parent, f".{path.name}.scratch-") as folder:
        source = source_of(model_of(layers), names, folder, BlockShape(16, 32), sparsity=SPARSITY, rows="resident")
        write_source(source, masks(unit, source, tasks), path, SPARSITY, source.task_file.dtype)


def model_of(layers: int) -> Any:
    """The model, all of whose parameters are pieces of the same random numbers."""
    config = OlmoeConfig(
        num_hidden_layers=layers, num_experts=64, num_experts_per_tok=8, hidden_size=2048, intermediate_size=1024,
        vocab_size=50304, max_position_embeddings=4096, pad_token_id=0, dtype=torch.bfloat16,
    )  # fmt: skip
    return model_of_few_numbers(config, POOL)


def masks(unit: str, source: DenseModel, tasks: int) -> Keep:
    """Who keeps what, drawn: the common half and a half of each task's own."""
    random = np.random.default_rng(0)

    def of(count: int, kept: int) -> npt.NDArray[np.bool_]:
        return drawn(count, kept, round(COMMON * kept), tasks, random)

    keep = {info.name: np.ones((info.grid.count, tasks), bool) for info in source.paged}
    if unit == "blocks":
        for info in source.paged:
            keep[info.name] = of(info.grid.count, round((1 - SPARSITY) * info.grid.count))
        return keep
    kept = experts_kept(source, "task-0")
    for layer in expert_layers(source):
        for names, mask in zip(layer.experts, of(len(layer.experts), kept), strict=True):
            for name in names:
                keep[name] &= mask
    return keep


def measured(bundle: Bundle) -> dict[str, Any]:
    budget, start = smallest_budget(bundle), time.perf_counter()
    with wp.Engine(bundle, EngineConfig(budget=budget, backend="torch", read_timeout=300)) as engine:
        opened = time.perf_counter() - start
        switches = time_switches(engine, 1)
        engine.deactivate()
        gc.collect()
        forget_peak()  # of the reads that switches are compared with
        with engine.task(next(iter(bundle.tasks))) as module, torch.inference_mode(), _no_pauses():
            with paged_kernel_runs():
                first, each = decode(module)
            whole = prefill(module)
    held = len(bundle.pages_of(next(iter(bundle.tasks)))) * bundle.page_bytes
    return {
        "kernel": isa(),
        "stored_mib": len(bundle.pages) * bundle.page_bytes / 2**20,
        "budget_mib": budget / 2**20,
        "of_which_a_tasks_pages": held / 2**20,
        "of_which_tables": (footprint(bundle).placement + footprint(bundle).largest_table) / 2**20,
        "page_kib": bundle.page_bytes / 2**10,
        "open_s": opened,
        "switch_mib": statistics.mean(each.bytes for each in switches) / 2**20,
        "switch_ms": median_ms(each.seconds for each in switches),
        "first_token_ms": 1e3 * first,
        "decode_ms": 1e3 * each,
        "prefill_64_ms": 1e3 * whole,
        "process_peak_mib": (peak_memory() or 0) / 2**20,
    }


def decode(module: Any) -> tuple[float, float]:
    """Seconds of a prompt of 16 tokens, and the median of a token after it."""
    state: dict[str, Any] = {"input_ids": torch.arange(16)[None] + 100, CACHE: None}

    def step() -> None:
        found = module(**state, use_cache=True, logits_to_keep=1)
        state.update({"input_ids": found.logits[:, -1].argmax(-1)[None], CACHE: getattr(found, CACHE)})

    first, *others = [seconds_of(step) for _ in range(1 + DECODED)]
    return first, statistics.median(others)


def prefill(module: Any) -> float:
    ids = torch.arange(PREFILL)[None] + 100
    run = partial(seconds_of, lambda: module(input_ids=ids, use_cache=False, logits_to_keep=1))
    return statistics.median(in_turns({"prefill": run}, 3, warm=0)["prefill"])


@contextmanager
def _no_pauses() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, str) else statistics.median(run[name] for run in runs)
        for name, value in runs[0].items()
    }


if __name__ == "__main__":
    typer.run(main)

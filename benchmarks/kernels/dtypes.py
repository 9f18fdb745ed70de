"""A warm forward in the two dtypes that tasks can compute in, one after the other in one process.

    python -m benchmarks.kernels.dtypes assistant.bundle

``WEIGHTPAGER_ISA`` chooses our kernels; ``ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2`` holds torch's own back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from benchmarks.kernels.proof import paged_kernel_runs
from weightpager import kernels
from weightpager.bundle import Bundle
from weightpager.engine import Engine
from weightpager_lab.contest.prompt import prompt
from weightpager_lab.contest.rivals.torch_rival import tensors

BATCH = 8
ROUNDS = 12
FORWARDS = 5
"""In a row, in each round; the first isn't counted."""


def main(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    threads: Annotated[int, typer.Option(min=1, help="Of torch and of the kernels.")] = 2,
) -> None:
    """Print milliseconds: median, and from the lower to the upper quartile."""
    torch.set_num_threads(threads)
    bundle = Bundle.open(path)
    task = next(iter(bundle.tasks))
    one = tensors(bundle.task(task), prompt(bundle, task, seed=0))
    with ExitStack() as stack:
        engines = {
            dtype: stack.enter_context(Engine.from_pretrained(path, dtype=dtype, backend="torch"))
            for dtype in ("auto", "bfloat16")
        }
        modules = {dtype: engine.activate(task) for dtype, engine in engines.items()}
        for name, inputs in (("one input", one), (f"{BATCH} longer ones", _larger(one))):
            with paged_kernel_runs():
                found = _measured(modules, inputs)
            for dtype, seconds in found.items():
                low, median, high = (1e3 * at for at in quantiles(seconds, n=4))
                typer.echo(f"{kernels.isa()}, {name}, {dtype}: {median:.2f} ms ({low:.2f} to {high:.2f})")


def _larger(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of the same, of texts four times as long."""
    return {
        name: value.repeat(BATCH, 4) if value.dim() == 2 else value.repeat(BATCH, 1, 1, 1)
        for name, value in inputs.items()
        if isinstance(value, Tensor)
    }


def _measured(modules: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Seconds of forwards; the modules take turns, so that a slow minute of the machine is both's."""
    found: dict[str, list[float]] = {dtype: [] for dtype in modules}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for dtype, module in modules.items():
                module(**inputs)
                for _ in range(FORWARDS - 1):
                    start = time.perf_counter()
                    module(**inputs)
                    found[dtype].append(time.perf_counter() - start)
    return found


if __name__ == "__main__":
    typer.run(main)

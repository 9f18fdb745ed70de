"""Pictures of any size by a model in the shape of Qwen2-VL-2B, with random weights in int4: time and memory.

    python -m benchmarks.device.any_size FOLDER --json docs/device.json

FOLDER takes 14 GB: the model, its bundles and its language model for llama.cpp, which are made once. Processes answer
questions about frames of 448 × 448 pixels by native code: with half of the blocks, where two tasks are switched
between, and with all. llama.cpp reads texts as long, by a model of just that language model's shape in Q4_0. Memory is
the most that a process has had resident. Processes take turns, and medians are told. Nothing here is about accuracy.
Rows of llama.cpp need ``pip install llama-cpp-python``; without it the benchmark says that it is missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.device import gguf_files
from benchmarks.device.any_size.models import BUNDLES, GGUF, make_gguf, make_model
from benchmarks.device.any_size.work import DECODED, LENGTH, SHOWN, SIDE
from benchmarks.device.measured import check, tell
from benchmarks.device.processes import in_turns, smallest_budget
from weightpager.config import format_size


def main(
    folder: Annotated[Path, typer.Argument(help="For models and bundles; what is there isn't made again.")],
    json_: Annotated[Path | None, typer.Option("--json", help="File of rows.")] = None,
    times: Annotated[int, typer.Option(help="That each process is run.")] = 3,
    threads: Annotated[int, typer.Option(help="Of each process.")] = 2,
) -> None:
    """Make what isn't there yet, and measure."""
    model = folder / "model"
    if not model.is_dir():
        typer.echo("making the model")
        make_model(model)
    commands = {}
    for name, tasks in BUNDLES.items():
        bundle = folder / name
        if not bundle.is_dir():
            _compile(model, bundle)
        budget = smallest_budget(bundle, tasks)
        commands[f"native {name}"] = ["-m", f"{__package__}.ours", str(bundle), str(budget)]
    if file := _q4_0(model, folder):
        commands[f"llama.cpp {file.name}"] = ["-m", f"{__package__}.llama_cpp_python", str(file), str(threads)]
    about = f"{SHOWN} frames of {SIDE} × {SIDE}, texts of {LENGTH} tokens, {DECODED} tokens behind; threads: {threads}"
    check("pictures of any size", about, commands, json_)
    rows = in_turns(commands, times, threads)
    tell("pictures of any size", about, rows, "benchmarks.device.any_size", json_)


def _compile(model: Path, bundle: Path) -> None:
    command = [sys.executable, "-m", f"{__package__}.models", str(model), str(bundle)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    for name, value in found.items():
        shown = format_size(int(value)) if "bytes" in name else f"{value:.0f}"
        typer.echo(f"compile {bundle.name}: {name} {shown}")


def _q4_0(model: Path, folder: Path) -> Path | None:
    if find_spec("llama_cpp") is None:
        typer.echo("llama-cpp-python isn't installed: no row of llama.cpp", err=True)
        return None
    given = folder / GGUF
    if not given.exists():
        make_gguf(model, given)
    return gguf_files.as_q4_0(given, folder)


if __name__ == "__main__":
    typer.run(main)

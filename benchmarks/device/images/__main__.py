"""Whole processes of a vision model: ours with each backend, and ONNX Runtime with the same task.

    python -m benchmarks.device.images BUNDLE PICTURES --json docs/device.json

Each process answers the pictures of a folder one at a time, then reads batches of made-up pixels. Memory is the most
that a process has had resident; start is from the process's creation to its first output. Processes take turns, and
medians are told. Rows of ONNX Runtime need ``pip install onnxruntime onnx onnxscript``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.device.measured import check, tell
from benchmarks.device.onnx_rows import image_models
from benchmarks.device.processes import in_turns, smallest_budget
from weightpager.bundle import Bundle
from weightpager.config import format_size

_CONFIG = "model/config.json"


def main(
    bundle: Annotated[Path, typer.Argument(help="With a task that classifies images, and a graph.")],
    pictures: Annotated[Path, typer.Argument(help="A folder of images.")],
    json_: Annotated[Path | None, typer.Option("--json", help="File of rows.")] = None,
    only: Annotated[str, typer.Option(help="Only rows with this in their names.")] = "",
    times: Annotated[int, typer.Option(help="That each process is run.")] = 5,
    threads: Annotated[int, typer.Option(help="Of each process.")] = 2,
) -> None:
    """Measure whole processes."""
    opened = Bundle.open(bundle)
    task = next(each.name for each in opened.tasks.values() if each.kind == "image-classification")
    size = str(json.loads(opened.read(_CONFIG))["image_size"])
    budget = str(smallest_budget(bundle, [task]))
    commands = {
        backend: ["-m", f"{__package__}.ours", backend, str(bundle), task, budget, str(pictures), size]
        for backend in ("native", "torch")
    }
    with tempfile.TemporaryDirectory() as folder:
        for row, (model,) in image_models(bundle, task, Path(folder)).items():
            commands[row] = ["-m", f"{__package__}.onnx_runtime", str(model), str(pictures), size, str(threads)]
        commands = {row: command for row, command in commands.items() if only in row}
        about = f"pictures for {task}, threads: {threads}; our budget is {format_size(int(budget))}"
        check("images", about, commands, json_)
        rows = in_turns(commands, times, threads)
    tell("images", about, rows, "benchmarks.device.images", json_)


if __name__ == "__main__":
    typer.run(main)

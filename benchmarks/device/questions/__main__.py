"""Whole processes that answer questions about pictures: ours, and the dense model in transformers.

    python -m benchmarks.device.questions half.bundle --other all.bundle --dense MODEL --json docs/device.json

Each process is asked all tasks' questions about one frame after the other, so that it switches between all tasks at
each frame; then for first tokens about other frames, and to go on with made-up ids. Memory is the most that a process
has had resident; start is from its creation to its first answer. Processes take turns, and medians are told.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.device.measured import check, tell
from benchmarks.device.processes import in_turns, smallest_budget
from weightpager.bundle import Bundle
from weightpager.bundle.held_out_places import held_out_file
from weightpager.config import format_size


def main(
    bundle: Annotated[Path, typer.Argument(help="With tasks that ask about the same pictures, and graphs.")],
    other: Annotated[list[Path] | None, typer.Option(help="Further bundles of these tasks.")] = None,
    dense: Annotated[Path | None, typer.Option(help="The model's directory, for transformers.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="File of rows.")] = None,
    frames: Annotated[int, typer.Option(help="Pictures that are asked about.", min=8)] = 40,
    torch: Annotated[bool, typer.Option(help="Measure the torch backend, too.")] = True,
    only: Annotated[str, typer.Option(help="Only rows with this in their names.")] = "",
    times: Annotated[int, typer.Option(help="That each process is run.")] = 5,
    threads: Annotated[int, typer.Option(help="Of each process.")] = 2,
) -> None:
    """Measure whole processes."""
    opened = Bundle.open(bundle)
    names = list(opened.tasks)
    commands: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "frames.json"
        file.write_text(json.dumps(_frames(opened, frames)), encoding="utf-8")
        for each in (bundle, *(other or ())):
            budget = str(smallest_budget(each, names))
            for backend in ("native", "torch") if torch and each is bundle else ("native",):
                ours = ["-m", f"{__package__}.ours", backend, str(each), budget, str(file)]
                commands[f"{backend} {each.name}"] = ours
        if dense is not None:
            generation = opened.task(names[0]).generation
            assert generation is not None
            most = str(generation.max_new_tokens)
            commands["transformers, bfloat16"] = ["-m", f"{__package__}.dense", str(dense), most, str(file)]
        commands = {row: command for row, command in commands.items() if only in row}
        about = f"{len(names)} questions about each of {frames} frames; threads: {threads}"
        about += f"; the budget of {bundle.name} is {format_size(smallest_budget(bundle, names))}"
        check("questions", about, commands, json_)
        rows = in_turns(commands, times, threads)
    tell("questions", about, rows, "benchmarks.device.questions", json_)


def _frames(bundle: Bundle, count: int) -> list[list[tuple[str, str, str]]]:
    """All tasks' held-out questions about the first pictures: task, picture and prompt."""
    asked = {task: _questions(bundle, task) for task in bundle.tasks}
    first = next(iter(asked.values()))
    return [[(task, image, asked[task][image]) for task in asked] for image in list(first)[:count]]


def _questions(bundle: Bundle, task: str) -> dict[str, str]:
    """A task's held-out prompts by their picture's path."""
    entry = bundle.task(task)
    assert entry.eval is not None
    file = held_out_file(bundle, entry.eval)
    if file is None:
        raise SystemExit(f"{task}: expected its held-out data on this machine, found none")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {str(file.parent / row["image"]): row[entry.eval.text] for row in rows}


if __name__ == "__main__":
    typer.run(main)

"""Whole processes of a language model: ours with each backend, and llama.cpp with the same model in its own files.

    python -m benchmarks.device.decoder BUNDLE ... --gguf FILE ... --json docs/device.json

Each process opens its tokenizer, reads made-up ids and goes on greedily: 128 tokens behind 16, then behind 512. Memory
is the most that a process has had resident, pages of mapped files included; start is from the process's creation to its
first token. Processes take turns, and medians are told. Processor time is of all threads together, which spin while
they wait: with ``--threads 1`` it is what the work takes. Rows of llama.cpp need ``pip install llama-cpp-python``,
which builds it for this machine; without it the benchmark says that it is missing.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.device import gguf_files
from benchmarks.device.decoder.work import DECODED, PREFILL, SHORT
from benchmarks.device.measured import check, tell
from benchmarks.device.processes import in_turns, smallest_budget
from weightpager.bundle import Bundle


def main(
    bundles: Annotated[list[Path], typer.Argument(help="Each with one language model's task first, and a graph.")],
    gguf: Annotated[list[Path] | None, typer.Option(help="The same model for llama.cpp.")] = None,
    as_q4_0: Annotated[bool, typer.Option("--as-q4-0", help="Measure each file in Q4_0, too.")] = False,
    torch: Annotated[bool, typer.Option(help="Measure the torch backend, too.")] = True,
    json_: Annotated[Path | None, typer.Option("--json", help="File of rows.")] = None,
    only: Annotated[str, typer.Option(help="Only rows with this in their names.")] = "",
    times: Annotated[int, typer.Option(help="That each process is run.")] = 5,
    threads: Annotated[int, typer.Option(help="Of each process.")] = 2,
) -> None:
    """Measure whole processes."""
    with tempfile.TemporaryDirectory() as folder:
        commands: dict[str, list[str]] = {}
        for bundle in bundles:
            task = next(each.name for each in Bundle.open(bundle).tasks.values() if each.kind == "language-modeling")
            budget = str(smallest_budget(bundle, [task]))
            for backend in ("native", "torch") if torch else ("native",):
                commands[f"{backend} {bundle.name}"] = [
                    "-m", f"{__package__}.ours", backend, str(bundle), task, budget,
                ]  # fmt: skip
        for file in _files(gguf or [], as_q4_0, Path(folder)):
            commands[f"llama.cpp {file.name}"] = [
                "-m",
                f"{__package__}.llama_cpp_python",
                str(file),
                str(threads),
            ]
        commands = {row: command for row, command in commands.items() if only in row}
        about = f"{DECODED} tokens behind {SHORT} and behind {PREFILL}, greedily; threads: {threads}"
        check("decoder", about, commands, json_)
        rows = in_turns(commands, times, threads)
    tell("decoder", about, rows, "benchmarks.device.decoder", json_)


def _files(given: list[Path], as_q4_0: bool, folder: Path) -> list[Path]:
    if given and find_spec("llama_cpp") is None:
        typer.echo("llama-cpp-python isn't installed: no rows of llama.cpp", err=True)
        return []
    return [*given, *(gguf_files.as_q4_0(file, folder) for file in given if as_q4_0)]


if __name__ == "__main__":
    typer.run(main)

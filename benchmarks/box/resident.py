"""Encoder and writer of the box beside what people would keep in memory for good: ONNX Runtime and llama.cpp.

    python -m benchmarks.box.resident bundles/search.bundle bundles/assistant.bundle --json docs/box.json

The same requests go to `Models`, at half of what both bundles can use and at all, and to one process with the encoder
in dynamic int8, a head for each task that classifies texts on one backbone, and the writer in Q4_0. Needs ``pip install
onnxruntime onnx onnxscript llama-cpp-python``. ``--models`` keeps their files for the next run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import row_file
from benchmarks.box.requests import TEXTS, TOKENS, trace
from benchmarks.box.rows import OF_RESIDENT, PEERS, RESIDENT, Row
from benchmarks.box.trial import Figures, Spec, in_a_process
from benchmarks.device.gguf_files import as_q4_0
from benchmarks.device.onnx_rows import exported_task, text_models
from weightpager.bundle import Bundle
from weightpager.config import cache_dir, parse_bandwidth
from weightpager.runtime.budget import largest_budget
from weightpager.runtime.shared_budget import named
from weightpager_lab.samples.models import SMOLLM2_GGUF, smollm2_gguf


def main(
    search: Annotated[Path, typer.Argument(help="The encoder's bundle.")],
    assistant: Annotated[Path, typer.Argument(help="The writer's bundle.")],
    file: Annotated[Path, typer.Option("--json", help="File of rows; those that it has aren't measured again.")],
    storage: Annotated[str, typer.Option(help="Bandwidth that is imitated.")] = "300MB/s",
    requests: Annotated[int, typer.Option(help="Of a trace.")] = 80,
    rounds: Annotated[int, typer.Option(help="Traces, each with a seed of its own.")] = 3,
    models: Annotated[Path | None, typer.Option(help="Folder for the others' files, which stay there.")] = None,
) -> None:
    """Measure what isn't in the file yet."""
    paths = [str(path.absolute()) for path in (search, assistant)]
    have = {row.key for row in row_file.read(file, Row)}
    with tempfile.TemporaryDirectory() as folder:
        peers = peers_command(Path(paths[0]), models or Path(folder))
        for share, spec in specs(paths, parse_bandwidth(storage), requests, rounds):
            row = Row(
                RESIDENT, spec.method, share, spec.budget, spec.seed, spec.rate, list(named(paths)), None,
                **row_file.origin("benchmarks.box.resident"),
            )  # fmt: skip
            if row.key in have:
                continue
            figures = of_peers(peers, spec) if spec.method == PEERS else in_a_process(spec)[0]
            row_file.add(file, [Row(**{**vars(row), "figures": [figures]})], Row)
            typer.echo(f"{spec.method}, {share}: {json.dumps(figures)}")


def specs(paths: Sequence[str], rate: float, requests: int, rounds: int) -> Iterator[tuple[float, Spec]]:
    """What is measured, each with its share of what both bundles can use; a round after the other."""
    most = sum(largest_budget(Bundle.open(path)) for path in paths)
    for repeat in range(rounds):
        for share in OF_RESIDENT:
            yield share, Spec(RESIDENT, paths, "ours", round(share * most), rate, requests, repeat)
        yield 1.0, Spec(RESIDENT, paths, PEERS, 0, rate, requests, repeat)


def of_peers(command: Sequence[str], spec: Spec) -> Figures:
    """Figures of the others' process, for the requests of a trace."""
    asked = [
        (request.kind, TEXTS[request.number % len(TEXTS)]) for request in trace(spec.opened, spec.requests, spec.seed)
    ]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    found: Figures = json.loads(done.stdout)
    return found


def peers_command(search: Path, folder: Path) -> list[str]:
    """The others' process; writes their models, where the folder hasn't got them."""
    folder.mkdir(parents=True, exist_ok=True)
    bundle = Bundle.open(search)
    tasks = [entry.name for entry in bundle.tasks.values() if entry.kind == "text-classification"]
    files = text_models(search, tasks, folder)
    if not files:
        raise typer.Exit(1)
    tokenizer = exported_task(search, tasks[0], folder) / "tokenizer.json"
    given = [files["onnx_int8"][0], tokenizer, bundle.task(tasks[0]).max_length, _gguf(folder), TOKENS]
    return [sys.executable, "-m", "benchmarks.box.peers", *map(str, given)]


def _gguf(folder: Path) -> Path:
    given = folder / SMOLLM2_GGUF
    if not given.exists():
        given.write_bytes(smollm2_gguf(cache_dir()))
    return as_q4_0(given, folder)


if __name__ == "__main__":
    typer.run(main)

"""Whole processes on a device: ours with each backend, and ONNX Runtime with the same tasks.

    python -m benchmarks.device BUNDLE --json docs/device.json

Each process answers the same held-out texts of a text-classification task, then reads batches of made-up ids. Memory is
the most that a process has had resident; start is from the process's creation to its first output. Processes take
turns, and medians are told. ``native_tasks`` goes through all of the bundle's tasks that classify texts, one after the
other, in the budget of the largest. With ``--all-blocks`` ``native_all_blocks`` does the same with another bundle of
these tasks, compiled with ``sparsity: 0``. ONNX Runtime has all of the tasks: one backbone with a head a task
(``onnx_int8``), or a model and a session for each (``onnx_sessions_int8``). Its rows need ``pip install onnxruntime
onnx onnxscript``; without these the benchmark says that they are missing. ``--models`` keeps its models for the next
run; ``--only`` measures some rows again, and leaves the others that the file has.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.device.measured import check, tell
from benchmarks.device.onnx_rows import exported_task, text_models
from benchmarks.device.processes import environment, in_turns, smallest_budget
from weightpager.bundle import Bundle
from weightpager.bundle.held_out_places import held_out_file
from weightpager.config import format_size
from weightpager.machine.memory import resident_memory

TEXTS = 200
_BACKENDS = ("native", "torch")


def main(
    bundle: Annotated[Path, typer.Argument(help="With tasks that classify texts, and a graph.")],
    json_: Annotated[Path | None, typer.Option("--json", help="File of rows.")] = None,
    all_blocks: Annotated[
        Path | None, typer.Option(help="The same tasks, compiled with sparsity 0: a row more.", exists=True)
    ] = None,
    task: Annotated[str | None, typer.Option(help="Of the bundle; the first that classifies texts.")] = None,
    models: Annotated[Path | None, typer.Option(help="Folder for ONNX Runtime's models, which stay there.")] = None,
    only: Annotated[str, typer.Option(help="Only rows with this in their names.")] = "",
    times: Annotated[int, typer.Option(help="That each process is run.")] = 5,
    threads: Annotated[int, typer.Option(help="Of each process.")] = 2,
) -> None:
    """Measure whole processes."""
    opened = Bundle.open(bundle)
    names = [each.name for each in opened.tasks.values() if each.kind == "text-classification"]
    name = task or names[0]
    names = [name, *(other for other in names if other != name)]
    with tempfile.TemporaryDirectory() as folder:
        texts = _held_out(opened, name, Path(folder))
        budget, largest = str(smallest_budget(bundle, [name])), str(smallest_budget(bundle, names))
        commands = {
            backend: ["-m", "benchmarks.device.ours", backend, str(bundle), budget, str(texts), name]
            for backend in _BACKENDS
        }
        commands["native_tasks"] = ["-m", "benchmarks.device.ours", "native", str(bundle), largest, str(texts), *names]
        whole = ""
        if all_blocks is not None:
            whole = str(smallest_budget(all_blocks, names))
            ours = ["-m", "benchmarks.device.ours", "native", str(all_blocks), whole]
            commands["native_all_blocks"] = [*ours, str(texts), *names]
        models = models or Path(folder)
        models.mkdir(parents=True, exist_ok=True)
        commands |= _peers(bundle, names, texts, threads, models)
        commands = {row: command for row, command in commands.items() if only in row}
        about = (
            f"{TEXTS} texts of {name}, one of {len(names)} tasks that classify texts, threads: {threads}; our budget "
            f"is {format_size(int(budget))}, for all of these tasks {format_size(int(largest))}"
        )
        about += f", with all blocks {format_size(int(whole))}" if whole else ""
        check("texts", about, commands, json_)
        rows = in_turns(commands, times, threads)
    if "native" in rows:
        rows["native"]["import_ms"] = statistics.median(_import_ms() for _ in range(times))
    for backend in rows.keys() & set(_BACKENDS):
        given = environment(threads) | {"WEIGHTPAGER_BACKEND": backend}
        rows[backend] |= {
            "run_ms": statistics.median(_run_ms(bundle, name, budget, given) for _ in range(times)),
            "server_bytes": _server_bytes(bundle, given),
        }
    tell("texts", about, rows, "benchmarks.device", json_)


def _held_out(bundle: Bundle, task: str, folder: Path) -> Path:
    entry = bundle.task(task)
    assert entry.eval is not None
    file = held_out_file(bundle, entry.eval)
    assert file is not None
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:TEXTS]]
    found = folder / "texts.txt"
    found.write_text("\n".join(" ".join(str(row[entry.eval.text]).split()) for row in rows), encoding="utf-8")
    return found


def _peers(bundle: Path, tasks: Sequence[str], texts: Path, threads: int, folder: Path) -> dict[str, list[str]]:
    found = text_models(bundle, tasks, folder)
    if not found:
        return {}
    tokenizer = str(exported_task(bundle, tasks[0], folder) / "tokenizer.json")
    length = str(Bundle.open(bundle).task(tasks[0]).max_length)
    shared = ["-m", "benchmarks.device.onnx_runtime", tokenizer, length, str(texts), str(threads)]
    return {row: [*shared, *map(str, models)] for row, models in found.items()}


def _import_ms() -> float:
    code = "import time; s = time.perf_counter(); import weightpager; print(time.perf_counter() - s)"
    return 1e3 * float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def _run_ms(bundle: Path, task: str, budget: str, given: Mapping[str, str]) -> float:
    arguments = ["run", str(bundle), "--task", task, "--budget", budget, "You won a prize"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "weightpager", *arguments], capture_output=True, check=True, env=given)
    return 1e3 * (time.perf_counter() - start)


def _server_bytes(bundle: Path, given: Mapping[str, str]) -> int:
    """What a server has resident after a request to each task."""
    port = 18431
    command = [sys.executable, "-m", "weightpager", "serve", str(bundle), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=given)
    try:
        _until_ready(f"http://127.0.0.1:{port}/ready")
        for entry in Bundle.open(bundle).tasks.values():
            body = json.dumps({"model": entry.name, "input": "You won a prize"}).encode()
            headers = {"Content-Type": "application/json"}
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/embeddings", body, headers)
            with urllib.request.urlopen(asked, timeout=60) as answer:
                answer.read()
        resident = resident_memory(Path(f"/proc/{process.pid}"))
        assert resident is not None, "Linux states what a process has resident"
        return resident
    finally:
        process.terminate()
        process.wait()


def _until_ready(url: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server didn't become ready within a minute")


if __name__ == "__main__":
    typer.run(main)

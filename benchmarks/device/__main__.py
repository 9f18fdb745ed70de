"""Whole processes on a device: ours with each backend, and ONNX Runtime with the same task.

    python -m benchmarks.device BUNDLE --json device.json

Each process answers the same held-out texts of a text-classification task, then reads batches of made-up ids. Memory is
the most that a process has had resident; start is from the process's creation to its first output. Processes take
turns, and medians are told. Rows of ONNX Runtime need ``pip install onnxruntime onnx onnxscript``; without these the
benchmark says that they are missing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.device.work import FIRST
from benchmarks.provenance import command as typed
from benchmarks.provenance import commit
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager.errors import BudgetError

TEXTS = 200
_BACKENDS = ("native", "torch")
_OURS = "from weightpager.cli import main; main()"

Row = dict[str, Any]


def main(
    bundle: Annotated[Path, typer.Argument(help="With a task that classifies texts, and a graph.")],
    json_: Annotated[Path | None, typer.Option("--json", help="File of rows.")] = None,
    task: Annotated[str | None, typer.Option(help="Of the bundle; the first that classifies texts.")] = None,
    times: Annotated[int, typer.Option(help="That each process is run.")] = 5,
    threads: Annotated[int, typer.Option(help="Of each process.")] = 2,
) -> None:
    """Measure whole processes."""
    opened = Bundle.open(bundle)
    name = task or next(each.name for each in opened.tasks.values() if each.kind == "text-classification")
    with tempfile.TemporaryDirectory() as folder:
        texts = _held_out(opened, name, Path(folder))
        budget = str(_smallest(bundle, name))
        commands = {
            backend: ["-m", "benchmarks.device.ours", backend, str(bundle), name, budget, str(texts)]
            for backend in _BACKENDS
        }
        commands |= _peers(bundle, name, texts, threads, Path(folder))
        runs: dict[str, list[Row]] = {row: [] for row in commands}
        for _ in range(times):
            for row, command in commands.items():
                runs[row].append(_run(command, threads))
        rows = {row: _medians(found) for row, found in runs.items()}
        rows["native"]["import_ms"] = statistics.median(_import_ms() for _ in range(times))
        for backend in _BACKENDS:
            given = _environment(threads) | {"WEIGHTPAGER_BACKEND": backend}
            rows[backend] |= {
                "run_ms": statistics.median(_run_ms(bundle, name, budget, given) for _ in range(times)),
                "server_bytes": _server_bytes(bundle, given),
            }
    found = {
        "task": name,
        "budget": int(budget),
        "threads": threads,
        "rows": rows,
        "command": typed("benchmarks.device"),
        "commit": commit(),
    }
    text = json.dumps(found, indent=1)
    typer.echo(text)
    if json_ is not None:
        json_.write_text(text + "\n")


def _smallest(bundle: Path, task: str) -> int:
    """The smallest budget that does for a task."""
    least = 1
    while True:
        try:
            with Engine(Bundle.open(bundle), EngineConfig(budget=least)) as engine:
                engine.activate(task)
            return least
        except BudgetError as error:
            least = error.smallest


def _held_out(bundle: Bundle, task: str, folder: Path) -> Path:
    entry = bundle.task(task)
    assert entry.eval is not None
    rows = [json.loads(line) for line in Path(entry.eval.file).read_text(encoding="utf-8").splitlines()[:TEXTS]]
    found = folder / "texts.txt"
    found.write_text("\n".join(" ".join(str(row[entry.eval.text]).split()) for row in rows), encoding="utf-8")
    return found


def _peers(bundle: Path, task: str, texts: Path, threads: int, folder: Path) -> dict[str, list[str]]:
    if not all(map(find_spec, ("onnxruntime", "onnx", "onnxscript"))):
        typer.echo("onnxruntime, onnx or onnxscript isn't installed: no rows of ONNX Runtime", err=True)
        return {}
    from benchmarks.device.onnx_model import write_models
    from weightpager.backends.torch.export import export_task

    entry = Bundle.open(bundle).task(task)
    exported = folder / "exported"
    export_task(Bundle.open(bundle), task, exported)
    return {
        row: ["-m", "benchmarks.device.onnx_runtime", str(model), str(exported / "tokenizer.json"),
              str(entry.max_length), str(texts), str(threads)]
        for row, model in write_models(exported, folder).items()
    }  # fmt: skip


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "WEIGHTPAGER_THREADS": str(threads)}


def _run(command: Sequence[str], threads: int) -> Row:
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=_environment(threads))
    assert process.stdout is not None
    while (line := process.stdout.readline().strip()) != FIRST:
        if not line and process.poll() is not None:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    first = time.perf_counter() - start
    rest = json.loads(process.stdout.read())
    process.wait()
    return {"first_output_ms": 1e3 * first, **rest}


def _medians(runs: Sequence[Row]) -> Row:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]} | {
        "first_output_ms_spread": [f(run["first_output_ms"] for run in runs) for f in (min, max)]
    }


def _import_ms() -> float:
    code = "import time; s = time.perf_counter(); import weightpager; print(time.perf_counter() - s)"
    return 1e3 * float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def _run_ms(bundle: Path, task: str, budget: str, given: Mapping[str, str]) -> float:
    command = [sys.executable, "-c", _OURS, "run", str(bundle), "--task", task, "--budget", budget, "You won a prize"]
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True, env=given)
    return 1e3 * (time.perf_counter() - start)


def _server_bytes(bundle: Path, given: Mapping[str, str]) -> int:
    """What a server has resident after a request to each task."""
    port = 18431
    command = [sys.executable, "-c", _OURS, "serve", str(bundle), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=given)
    try:
        _until_ready(f"http://127.0.0.1:{port}/ready")
        for entry in Bundle.open(bundle).tasks.values():
            body = json.dumps({"model": entry.name, "input": "You won a prize"}).encode()
            headers = {"Content-Type": "application/json"}
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/embeddings", body, headers)
            with urllib.request.urlopen(asked, timeout=60) as answer:
                answer.read()
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
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

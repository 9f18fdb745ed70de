"""Processes that are measured: started, timed until their first output, asked what they found."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from compileall import compile_dir
from pathlib import Path

import weightpager
from benchmarks.device.measured import Row
from benchmarks.device.work import FIRST
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager.errors import BudgetError


def in_turns(commands: Mapping[str, Sequence[str]], times: int, threads: int) -> dict[str, Row]:
    """The medians of each process's figures, by row; one run of each after the other, so many times.

    Args:
        commands: by row, without the interpreter.
        times: of each.
        threads: of each process.
    """
    compile_dir(Path(weightpager.__file__).parent, quiet=2)  # as pip does where it installs a wheel
    runs: dict[str, list[dict[str, float]]] = {row: [] for row in commands}
    for _ in range(times):
        for row, command in commands.items():
            runs[row].append(_run(command, threads))
    return {row: _medians(found) for row, found in runs.items()}


def environment(threads: int) -> dict[str, str]:
    """Of a process with so many threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "WEIGHTPAGER_THREADS": str(threads)}


def smallest_budget(bundle: Path, tasks: Sequence[str]) -> int:
    """The smallest that does for each of some tasks, one at a time."""
    least = 1
    while True:
        try:
            with Engine(Bundle.open(bundle), EngineConfig(budget=least)) as engine:
                for task in tasks:
                    engine.activate(task)
            return least
        except BudgetError as error:
            least = error.smallest


def _run(command: Sequence[str], threads: int) -> dict[str, float]:
    start = time.perf_counter()
    python = [sys.executable, *command]
    with subprocess.Popen(python, stdout=subprocess.PIPE, text=True, env=environment(threads)) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline().strip()) != FIRST:
            if not line and process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        first = time.perf_counter() - start
        rest = json.loads(process.stdout.read())
    return {"first_output_ms": 1e3 * first, **rest}


def _medians(runs: Sequence[Mapping[str, float]]) -> Row:
    timed = [key for key in runs[0] if not key.startswith("peak_bytes")]
    found: Row = {key: float(statistics.median(run[key] for run in runs)) for key in runs[0]}
    return found | {f"{key}_spread": [f(run[key] for run in runs) for f in (min, max)] for key in timed}

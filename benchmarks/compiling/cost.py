"""What a compile costs by stage, in time and in memory: the text assistant's six tasks, aligned at 75 %.

    python -m benchmarks.compiling.cost --json docs/results.json

Calibration is as the documentation advises it, 128 items of at most 256 tokens for each task. Nothing is trained but a
few steps of the heads, which no other stage's time depends on.
"""

from __future__ import annotations

import json as json_file
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import row_file
from benchmarks.report import results_file
from benchmarks.report.results_file import CompileRow
from weightpager.bundle import Bundle
from weightpager.bundle.report.compile_report import read_report
from weightpager.config import cache_dir
from weightpager.errors import WeightpagerError
from weightpager_lab.limits.cgroup import run_limited
from weightpager_lab.samples import minilm, prepare

ITEMS, TOKENS = 128, 256
TRAINING_STEPS = 10


def main(json: Annotated[Path, typer.Option(help="File of results to put the row into.")]) -> None:
    """Compile once, and measure it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task_file = folder / "tasks.json"  # JSON is YAML
        task_file.write_text(json_file.dumps(content(cache_dir())), encoding="utf-8")
        bundle = folder / "assistant.bundle"
        run = run_limited(
            [sys.executable, "-m", "weightpager", "compile", str(task_file), "--out", str(bundle), "--no-cache"]
        )
        if run.exit_code != 0:
            raise WeightpagerError(f"the compile failed: {run.stderr[-400:]}")
        row = measured(Bundle.open(bundle), run.peak_memory)
    typer.echo(row.model_dump_json(indent=1))
    typer.echo(f"compile.align_pack_share_of_calibrate = {row.align_pack_share:.4f}")
    results_file.write(json, results_file.read(json).model_copy(update={"compiling": row}))


def content(cache: Path) -> dict[str, Any]:
    samples, _ = prepare(cache, report=typer.echo)
    return {
        "model": str(minilm(cache)),
        "dtype": "bfloat16",
        "sparsity": 0.75,
        "alignment": 0.5,
        "calibration": {"items": ITEMS, "max_length": TOKENS, "batch": 16},
        "training": {"steps": TRAINING_STEPS},
        "recover": {"method": "none"},
        "tasks": {sample.name: sample.entry() for sample in samples},
    }


def measured(bundle: Bundle, peak_memory: int | None) -> CompileRow:
    report = read_report(bundle)
    return CompileRow(
        tasks=len(bundle.tasks),
        calibration_items=ITEMS,
        calibration_tokens=TOKENS,
        seconds={stage: round(seconds, 3) for stage, seconds in report.seconds.items()},
        stage_memory=report.peak_memory,
        peak_memory=peak_memory,
        duality_gap=report.duality_gap,
        command=row_file.command("benchmarks.compiling.cost"),
        commit=row_file.commit(),
        cpu=row_file.cpu(),
    )


if __name__ == "__main__":
    typer.run(main)

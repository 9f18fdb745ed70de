"""What `benchmarks.device.decoder` measures: SmolLM2 as bundles, and as llama.cpp's file.

    python -m benchmarks.device.decoder.bundles .

Half of the blocks and all of them, in int4 and without recovery, which changes no speed; with all tokens, and with the
16,384 that the narrow tasks of the accuracy benchmark use most.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import weightpager as wp
from benchmarks.accuracy.__main__ import task_file
from benchmarks.accuracy.settings import effort_of
from weightpager.cli.progress import progress
from weightpager.compiler.task_file.file import from_dict
from weightpager.compiler.trim import trim
from weightpager.config import cache_dir
from weightpager_lab.samples import Sample, language_modeling, smollm2
from weightpager_lab.samples.models import SMOLLM2_GGUF, smollm2_gguf

TOKENS = 16384
SPARSITIES = {"half": 0.5, "all": 0.0}


def main(out: Annotated[Path, typer.Argument(help="Folder to write into; what is there is left alone.")]) -> None:
    """Write all that is missing."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / SMOLLM2_GGUF).exists():
        (out / SMOLLM2_GGUF).write_bytes(smollm2_gguf(cache_dir()))
    samples, _ = language_modeling(cache_dir(), train_chars=100_000, eval_chars=20_000, report=typer.echo)
    with progress() as stages:
        narrow = out / "smollm2-16k"
        if not narrow.exists():
            trim(task_file("D", effort_of("D", quick=False), 0), narrow, TOKENS, stages)
        for suffix, model in (("", smollm2(cache_dir())), ("-16k", narrow)):
            for name, sparsity in SPARSITIES.items():
                bundle = out / f"{name}{suffix}.bundle"
                if not bundle.exists():
                    wp.compile(
                        from_dict(_content(model, samples[0], sparsity)), out=bundle, cache=False, progress=stages
                    )


def _content(model: Path, text: Sample, sparsity: float) -> dict[str, Any]:
    """One language model's task file, as a mapping."""
    return {
        "model": str(model),
        "sparsity": sparsity,
        "compare": "none",
        "calibration": {"items": 16, "max_length": 128, "batch": 8},
        "tasks": {text.name: {**text.entry(), "items": 4}},
    }


if __name__ == "__main__":
    typer.run(main)

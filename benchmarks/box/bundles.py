"""The box's three bundles: an encoder that searches, a small language model that writes, and a model that drives.

    python -m benchmarks.box.bundles --out bundles

Weights and shapes are real, but nothing wins back what dropped blocks cost the writers, and the encoder's heads are
trained for a moment: they serve to measure speed and memory. The driving model's connector is random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import weightpager as wp
from weightpager.config import cache_dir
from weightpager_lab.samples import minilm, smollm2
from weightpager_lab.samples import prepare as text_tasks
from weightpager_lab.samples.dinov2 import coarser, dinov2
from weightpager_lab.samples.driving_questions import FRAME, driving_questions
from weightpager_lab.samples.narrow_tasks import text_generation
from weightpager_lab.samples.road_llava import joined, save
from weightpager_lab.samples.sample import Sample

SEARCH, ASSISTANT, DRIVING = "search", "assistant", "driving"
ROWS = 200
"""To calibrate on, of each task."""

_QUICKLY: Mapping[str, Any] = {
    "dtype": "int4", "rows": "on-demand", "alignment": 0.5, "recover": "none", "compare": "none", "reorder": False,
}  # fmt: skip


def main(
    out: Annotated[Path, typer.Option(help="Folder for the bundles; those that it has stay.")],
    only: Annotated[list[str] | None, typer.Option(help="Only these bundles.")] = None,
) -> None:
    """Make the bundles that aren't there."""
    out.mkdir(parents=True, exist_ok=True)
    for name, task_file in {SEARCH: search, ASSISTANT: assistant, DRIVING: driving}.items():
        path = out / f"{name}.bundle"
        if not path.is_dir() and name in (only or [name]):
            wp.compile(task_file(cache_dir(), out), out=path)
        typer.echo(str(path))


def search(cache: Path, _: Path) -> dict[str, Any]:
    """MiniLM's six tasks, a quarter of the blocks."""
    samples, _missing = text_tasks(cache, train_items=ROWS, eval_items=20, report=typer.echo)
    return {
        **_QUICKLY,
        "model": str(minilm(cache)),
        "sparsity": 0.75,
        "recover": "closed-form",
        "calibration": {"items": 96, "max_length": 64, "batch": 32},
        "training": {"steps": 12},
        "tasks": {sample.name: sample.entry() for sample in samples},
    }


def assistant(cache: Path, _: Path) -> dict[str, Any]:
    """SmolLM2-135M's six writing tasks, half of the blocks."""
    samples, _missing = text_generation(cache, train_items=ROWS, eval_items=20, report=typer.echo)
    return _writing(smollm2(cache), samples, max_length=384)


def driving(cache: Path, out: Path) -> dict[str, Any]:
    """Seven questions about rendered roads, asked of DINOv2-S before SmolLM2-135M, half of the blocks."""
    samples = driving_questions(cache, train_scenes=ROWS, eval_scenes=20, report=typer.echo)
    model = out / "driving-model"
    if not (model / "chat_template.jinja").is_file():
        _join(cache, model)
    return _writing(model, samples, max_length=96)


def _join(cache: Path, target: Path) -> None:
    from transformers import Dinov2Model

    tower = target.with_name("driving-tower")
    coarser(Dinov2Model.from_pretrained(dinov2(cache)), FRAME).save_pretrained(tower)
    model, tokenizer = joined(tower, smollm2(cache))
    save(model.bfloat16(), tokenizer, target)


def _writing(model: Path, samples: Sequence[Sample], *, max_length: int) -> dict[str, Any]:
    entries = {each.name: {**each.entry(), "items": 4, "max_new_tokens": 8} for each in samples}
    return {
        **_QUICKLY,
        "model": str(model),
        "sparsity": 0.5,
        "calibration": {"items": 4, "max_length": max_length, "batch": 4},
        "training": {"steps": 1, "learning_rate": 1e-5, "batch": 1},
        "tasks": entries,
    }


if __name__ == "__main__":
    typer.run(main)

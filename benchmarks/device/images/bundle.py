"""What `benchmarks.device.images` measures: a ViT of 22 million random parameters as a bundle, and pictures for it.

    python -m benchmarks.device.images.bundle .

A quarter of the blocks in int4, without recovery, which changes no speed. Pictures are of one colour.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

import weightpager as wp
from weightpager.cli.progress import progress
from weightpager.compiler.task_file.file import from_dict

COLOURS = ("red", "green", "blue")
TRAINED, PICTURES = 4, 10
"""Of each colour."""


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write into; a bundle that is there is left alone.")],
) -> None:
    """Write `camera.bundle`, and its pictures into `pictures`."""
    pictures = _pictures(out / "pictures", PICTURES)
    if (out / "camera.bundle").exists():
        return
    with tempfile.TemporaryDirectory() as folder, progress() as stages:
        train = _pictures(Path(folder, "train"), TRAINED)
        content = {
            "model": str(_model(Path(folder, "vit"))),
            "sparsity": 0.75,
            "dtype": "int4",
            "compare": "none",
            "recover": "none",
            "calibration": {"items": 8, "batch": 4},
            "training": {"steps": 1, "batch": 4},
            "tasks": {"colour": {"kind": "image-classification", "train": str(train), "eval": str(pictures)}},
        }
        wp.compile(from_dict(content), out=out / "camera.bundle", cache=False, progress=stages)


def _model(folder: Path) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return folder


def _pictures(folder: Path, count: int) -> Path:
    """A folder for each colour."""
    for colour in COLOURS:
        (folder / colour).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (224 + number, 224), colour).save(folder / colour / f"{number}.png")
    return folder


if __name__ == "__main__":
    typer.run(main)

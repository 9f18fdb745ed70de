"""A bundle's task as ONNX models, where what that needs is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import typer

from weightpager.bundle import Bundle

EXPORTED = "exported"
"""Of the folder: the task as a directory of transformers."""


def onnx_models(bundle: Path, task: str, folder: Path) -> dict[str, Path]:
    """Files by the names of their rows; none, and a word why, where a package is missing."""
    if not all(map(find_spec, ("onnxruntime", "onnx", "onnxscript"))):
        typer.echo("onnxruntime, onnx or onnxscript isn't installed: no rows of ONNX Runtime", err=True)
        return {}
    from benchmarks.device.onnx_model import write_models
    from weightpager.backends.torch.export import export_task

    export_task(Bundle.open(bundle), task, folder / EXPORTED)
    return write_models(folder / EXPORTED, folder, Bundle.open(bundle).takes_images)

"""A bundle's tasks as ONNX models, where what that needs is installed; what a folder has isn't written again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import typer

from weightpager.bundle import Bundle

_PACKAGES = ("onnxruntime", "onnx", "onnxscript")

Files = dict[str, tuple[Path, ...]]
"""A process's models, by its row's name: it opens a session for each."""


def text_models(bundle: Path, tasks: Sequence[str], folder: Path) -> Files:
    """One model with a head a task, and a model for each; none, and a word why, where a package is missing."""
    if not _is_installed():
        return {}
    from benchmarks.device.onnx_model import write_text_model

    exported = {task: exported_task(bundle, task, folder) for task in tasks}
    heads = _in_both(folder / "heads", partial(write_text_model, list(exported.values())))
    single = [_in_both(folder / task, partial(write_text_model, [exported[task]])) for task in tasks]
    found = {f"onnx_{dtype}": (file,) for dtype, file in heads.items()}
    return found | {f"onnx_sessions_{dtype}": tuple(each[dtype] for each in single) for dtype in heads}


def image_models(bundle: Path, task: str, folder: Path) -> Files:
    """A task's model; none, and a word why, where a package is missing."""
    if not _is_installed():
        return {}
    from benchmarks.device.onnx_model import write_image_model

    exported = exported_task(bundle, task, folder)
    written = _in_both(folder / task, partial(write_image_model, exported))
    return {f"onnx_{dtype}": (file,) for dtype, file in written.items()}


def exported_task(bundle: Path, task: str, folder: Path) -> Path:
    """A task as a directory of transformers, in a folder."""
    from weightpager.backends.torch.export import export_task

    found = folder / f"{task}.exported"
    return found if found.exists() else export_task(Bundle.open(bundle), task, found)


def _in_both(stem: Path, write: Callable[[Path], None]) -> dict[str, Path]:
    """A model's files by dtype."""
    from benchmarks.device.onnx_model import quantise

    found = {dtype: stem.with_suffix(f".{dtype}.onnx") for dtype in ("int8", "float32")}
    if not found["float32"].exists():
        write(found["float32"])
    if not found["int8"].exists():
        quantise(found["float32"], found["int8"])
    return found


def _is_installed() -> bool:
    if all(map(find_spec, _PACKAGES)):
        return True
    typer.echo(f"{', '.join(_PACKAGES)}: not all of them are installed; no rows of ONNX Runtime", err=True)
    return False

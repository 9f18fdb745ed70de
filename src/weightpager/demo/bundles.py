"""The demo's bundles: aligned, unaligned and with one shared mask, from one calibration; kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import save_file

import weightpager
from weightpager import compiler
from weightpager.bundle import Bundle, writing
from weightpager.bundle.files import hash_file
from weightpager.compiler.measure import Progress
from weightpager.compiler.pipeline import build, prepare
from weightpager.compiler.source import parameters
from weightpager.compiler.task_file import from_dict
from weightpager.errors import BundleError
from weightpager.samples import Sample

ALIGNMENT = 0.52
"""λ: the least that raises the mean overlap by a tenth; chosen on the validation data."""

SPARSITY = 0.3
VARIANTS = {"aligned": ALIGNMENT, "unaligned": 0.0, "shared": float("inf")}


@dataclass(frozen=True)
class DemoBundles:
    """Three bundles of the same tasks, and the dense checkpoint that they were made from."""

    aligned: Bundle
    unaligned: Bundle
    shared: Bundle
    dense: Path


def demo_bundles(model: Path, samples: Sequence[Sample], cache: Path, progress: Progress) -> DemoBundles:
    """Open the bundles of these tasks, or compile them first.

    Raises:
        CompileError: they can't be compiled.
    """
    content = _task_file(model, samples)
    folder = cache / "demo" / _identity(content, samples)
    try:
        return _open(folder)
    except BundleError:
        _compile(content, folder, progress)
        return _open(folder)


def _task_file(model: Path, samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "model": str(model),
        "sparsity": SPARSITY,
        "calibration": {"items": 256, "max_length": 64, "batch": 32},
        "training": {"steps": 240, "learning_rate": 3e-4, "batch": 32},
        "tasks": {
            sample.name: {
                "kind": sample.kind,
                "train": str(sample.train),
                "validation": str(sample.validation),
                "eval": str(sample.eval),
            }
            for sample in samples
        },
    }


def _identity(content: dict[str, Any], samples: Sequence[Sample]) -> str:
    """Names the cache folder: task file, data, model, versions and the compiler's own sources decide on a bundle."""
    facts = {
        "tasks": content,
        "alignment": ALIGNMENT,
        "versions": [weightpager.__version__, torch.__version__],
        "model": hash_file(Path(content["model"]) / "model.safetensors").blake3,
        "data": [
            hash_file(path).blake3 for sample in samples for path in (sample.train, sample.validation, sample.eval)
        ],
        "compiler": [hash_file(path).blake3 for path in sorted(Path(compiler.__file__).parent.glob("*.py"))],
    }
    return blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _open(folder: Path) -> DemoBundles:
    dense = folder / "dense.safetensors"
    if not dense.is_file():
        raise BundleError(f"{dense}: expected the dense checkpoint")
    aligned, unaligned, shared = (Bundle.open(folder / f"{name}.bundle") for name in VARIANTS)
    return DemoBundles(aligned, unaligned, shared, dense)


def _compile(content: dict[str, Any], folder: Path, progress: Progress) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prepared = prepare(from_dict(content), progress)
    for name, alignment in VARIANTS.items():

        def staged(stage: str, done: int, total: int, name: str = name) -> None:
            progress(f"{name}: {stage}", done, total)

        with writing(folder / f"{name}.bundle", force=True) as writer:
            build(writer, prepared.changed(alignment=alignment), staged, with_controls=name == "aligned")
    # What a device would hold without us: the whole model of one task, in the precision of the pages.
    model = next(iter(prepared.source.models.values()))
    tensors = {
        name: (tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor).detach().contiguous().clone()
        for name, tensor in parameters(model).items()
    }
    temporary = folder / "dense.tmp"
    save_file(tensors, temporary)
    temporary.rename(folder / "dense.safetensors")

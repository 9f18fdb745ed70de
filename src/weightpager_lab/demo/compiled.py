"""The demo's bundle and what it is compared with, compiled once and kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from safetensors import SafetensorError
from safetensors.torch import save_file

import weightpager
from weightpager.bundle import Bundle, writing
from weightpager.bundle.files.entry import hash_file
from weightpager.bundle.files.new_directory import sync
from weightpager.bundle.report.page_statistics import mean_overlap, overlap_of
from weightpager.compiler.model.dense_model import parameters
from weightpager.compiler.pipeline import build, telling
from weightpager.compiler.prepare import prepare
from weightpager.compiler.resume.cache import Cache
from weightpager.compiler.resume.identities import compile_identity, own_code
from weightpager.compiler.resume.journal import CompileRun, Journal
from weightpager.compiler.selection.block_choice import choose_blocks
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.task_file.file import from_dict
from weightpager.errors import BundleError
from weightpager.progress import Progress, prefixed
from weightpager_lab.companions import Name, build_companions, companions_in
from weightpager_lab.samples import Sample, SampleUnavailable

ALIGNMENT = 0.5
SPARSITY = 0.75
DTYPE = "int4"
TRAINING_STEPS = 240
RECOVER_STEPS = 150
RATE = 2e-4
BATCH = 16
"""Where minutes count, more and smaller steps teach more: 0.814 after 300 steps of 16, 0.764 after 150 of 32."""


FAMILY: Mapping[str, Mapping[str, float]] = {
    "a tenth of the blocks": {"sparsity": 0.9},
    "half of the blocks": {"sparsity": 0.5},
}
"""Bundles for other budgets, trained from the same dense model for as many steps."""


@dataclass(frozen=True)
class Compiled:
    """The bundle, those for other budgets, the dense checkpoint behind all, and the mean overlap without alignment."""

    bundle: Bundle
    family: Mapping[str, Bundle]
    dense: Path
    unaligned_overlap: float


def compiled(model: Path, samples: Sequence[Sample], cache: Path, progress: Progress) -> Compiled:
    """Open the bundle of these tasks, or compile it first.

    Raises:
        CompileError: it can't be compiled.
        CompileInterrupted: Ctrl-C; the text says what is kept.
        SampleUnavailable: it can't be written.
    """
    content = _task_file(model, samples)
    folder = cache / "demo" / _identity(content, samples)
    try:
        return _open(folder)
    except (BundleError, OSError, ValueError):
        with writing_to(folder):
            return _compile(content, folder, progress)


def companions(ours: Compiled, model: Path, samples: Sequence[Sample], progress: Progress) -> Mapping[Name, Bundle]:
    """Open the companions beside the bundle of these tasks, or compile them first.

    Raises:
        CompileError, SampleUnavailable: as `compiled`.
    """
    folder = ours.bundle.path.parent
    if not companions_in(folder):
        task_file = from_dict(_task_file(model, samples))
        run = CompileRun(progress, Journal(folder / "companions-journal", compile_identity(task_file)))
        with writing_to(folder), run.journal.held():
            if not companions_in(folder):  # another process may have compiled them until now
                build_companions(prepare(task_file, run, cache=Cache.of_user()), folder, run)
    return companions_in(folder)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn what the storage of the cache refuses into a `SampleUnavailable`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SampleUnavailable(
            f"{folder} cannot be written: {reason}; name another cache by WEIGHTPAGER_CACHE"
        ) from error


def _task_file(model: Path, samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "model": str(model),
        "sparsity": SPARSITY,
        "dtype": DTYPE,
        "rows": "on-demand",
        "alignment": ALIGNMENT,
        "calibration": {"items": 96, "max_length": 64, "batch": 32},
        "training": {"steps": TRAINING_STEPS, "learning_rate": RATE, "batch": BATCH},
        "recover": {
            "method": "finetune",
            "steps": RECOVER_STEPS,
            "learning_rate": RATE,
            "batch": BATCH,
            "distillation": 0.0,
            "patience": 0,
        },
        "compare": True,
        "tasks": {sample.name: sample.entry() for sample in samples},
    }


def _identity(content: dict[str, Any], samples: Sequence[Sample]) -> str:
    """Names the cache folder: task file, data, model, versions and the compiler's own code decide on a bundle."""
    facts = {
        "tasks": content,
        "family": {name: dict(settings) for name, settings in FAMILY.items()},
        "versions": [weightpager.__version__, torch.__version__],
        "model": hash_file(Path(content["model"]) / "model.safetensors").blake3,
        "data": [
            hash_file(path).blake3 for sample in samples for path in (sample.train, sample.validation, sample.eval)
        ],
        "code": own_code(),
    }
    return blake3(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _open(folder: Path) -> Compiled:
    """Open what `_compile` wrote; ``unaligned.json`` is written last, so where it is there, all is."""
    unaligned = float(json.loads((folder / "unaligned.json").read_text(encoding="utf-8")))
    dense = folder / "dense.safetensors"
    dense.stat()
    family = {name: Bundle.open(_place(folder, name)) for name in FAMILY}
    return Compiled(Bundle.open(folder / "aligned.bundle"), family, dense, unaligned)


def _place(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.bundle"


def _compile(content: dict[str, Any], folder: Path, progress: Progress) -> Compiled:
    folder.mkdir(parents=True, exist_ok=True)
    task_file = from_dict(content)
    run = CompileRun(progress, Journal(folder / "journal", compile_identity(task_file)))
    with telling(run.journal), run.journal.held():
        with suppress(BundleError, OSError, ValueError):  # another process may have compiled it until now
            return _open(folder)
        (folder / "unaligned.json").unlink(missing_ok=True)
        with writing(folder / "aligned.bundle", force=True) as writer:
            prepared = prepare(task_file, run, cache=Cache.of_user())
            build(writer, prepared, run)
        for name, settings in FAMILY.items():
            place = _place(folder, name)
            alone = CompileRun(prefixed(progress, name), run.journal.part(place.stem))
            with writing(place, force=True) as writer:
                build(writer, prepared.changed(**settings, compare="none"), alone)
        _keep(folder, _dense_tensors(prepared), _unaligned_overlap(prepared))
        return _open(folder)


def _dense_tensors(prepared: Prepared) -> dict[str, torch.Tensor]:
    """What a device would hold without us: the whole model of one task, in bfloat16."""
    model = next(iter(prepared.source.models.values()))
    return {
        name: (tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor).detach().contiguous().clone()
        for name, tensor in parameters(model).items()
    }


def _keep(folder: Path, dense: dict[str, torch.Tensor], unaligned: float) -> None:
    """Write what is beside the bundle, as `_open` expects it."""
    save_file(dense, folder / "dense.safetensors")
    sync(folder / "dense.safetensors")
    (folder / "unaligned.json").write_text(json.dumps(unaligned), encoding="utf-8")


def _unaligned_overlap(prepared: Prepared) -> float:
    masks = choose_blocks(prepared.changed(alignment=0.0)).masks
    return mean_overlap(overlap_of(np.concatenate(list(masks.keep.values()))))

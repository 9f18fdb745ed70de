"""A task's low-rank parts: in low-rank pages, or as older bundles have them, in files of PEFT's layout.

Such bundles have ``tasks/<task>/adapter_config.json`` and ``adapter_model.safetensors``, whose parts stay in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from weightpager.bundle.files.strict import Strict
from weightpager.bundle.files.tensor_file import Header, StoredTensors, TensorInfo, read_arrays, stored_tensors
from weightpager.bundle.format.low_rank import LowRank
from weightpager.bundle.format.manifest import FORMS, MOST_RANK, Manifest, TaskKind, WeightEntry
from weightpager.bundle.format.names import RESIDENT, adapter_files, private_file
from weightpager.bundle.format.whole_weight import check_whole
from weightpager.bundle.reader import Bundle
from weightpager.errors import BundleFormatError

BASE = "base_model."
"""How the canonical name of every paged weight begins."""

_PEFT = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"


class AdapterConfig(Strict, frozen=True, kw_only=True):
    """The part of PEFT's ``LoraConfig`` that may be stated; anything else would change what is computed."""

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None
    base_model_name_or_path: str | None
    r: Annotated[int, Meta(ge=1, le=MOST_RANK)]
    lora_alpha: Annotated[float, Meta(gt=0, le=2**20)]
    target_modules: Annotated[list[str], Meta(min_length=1)]
    bias: Literal["none"]
    inference_mode: bool


def has_low_rank(bundle: Bundle, task: str) -> bool:
    return bundle.task(task).low_rank is not None or _has_files(bundle, task)


def _has_files(bundle: Bundle, task: str) -> bool:
    return any(file in bundle.manifest.files for file in adapter_files(task))


def adapter_bytes(bundle: Bundle, task: str) -> int:
    """Bytes of a task's low-rank parts that stay in memory, as they lie in files; 0 if there are none."""
    return bundle.entry(adapter_files(task)[1]).bytes if _has_files(bundle, task) else 0


def low_rank_bytes(bundle: Bundle, task: str) -> int:
    """Bytes of a task's low-rank pages, or of its low-rank parts in a file."""
    return len(bundle.low_rank_pages(task)) * bundle.page_bytes + adapter_bytes(bundle, task)


def read_adapter(bundle: Bundle, task: str) -> dict[str, LowRank]:
    """A task's low-rank parts that lie in files, by canonical name of the paged weight; empty if there are none.

    Raises:
        BundleFormatError: a file is damaged or missing, or says anything that doesn't fit the paged weights.
    """
    if not _has_files(bundle, task):
        return {}
    config_file, file = adapter_files(task)
    config = _read_config(bundle, task, config_file)
    weights = _targets(bundle, config, config_file)
    wanted = _header(config, weights)
    arrays = read_arrays(bundle.path, file, bundle.entry(file), lambda header: _check_header(header, wanted, file))
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise BundleFormatError(file, name, "finite values", "others")
    scale = np.float32(config.lora_alpha / config.r)
    for module in weights:
        arrays[f"{_PEFT}{module}{_B}"] *= scale  # where it is: all arrays of a file share memory, which stays
    return {
        weight.name: LowRank(arrays[f"{_PEFT}{module}{_A}"], arrays[f"{_PEFT}{module}{_B}"])
        for module, weight in weights.items()
    }


def _targets(bundle: Bundle, config: AdapterConfig, file: str) -> dict[str, WeightEntry]:
    """The paged weights that a configuration names, by module."""
    known = {weight.name: weight for weight in bundle.manifest.weights}
    found: dict[str, WeightEntry] = {}
    for module in config.target_modules:
        # "bert.encoder.…" is canonically "base_model.encoder.…", whatever the architecture calls its base.
        prefix, _, rest = module.partition(".")
        weight = known.pop(BASE + rest, None)
        if not prefix or weight is None:
            raise BundleFormatError(file, "target_modules", "paged weights, each once", module[:400])
        _check_rank(file, config.r, weight)
        found[module] = weight
    return found


def _header(config: AdapterConfig, weights: Mapping[str, WeightEntry]) -> Header:
    down = {f"{_PEFT}{name}{_A}": TensorInfo("float32", (config.r, of.in_features)) for name, of in weights.items()}
    up = {f"{_PEFT}{name}{_B}": TensorInfo("float32", (of.out_features, config.r)) for name, of in weights.items()}
    return down | up


def _check_header(header: Header, wanted: Header, file: str) -> None:
    for name, stated in wanted.items():
        if header.get(name) != stated:
            raise BundleFormatError(file, name, stated, header.get(name, "no such tensor"))
    for name in sorted(header.keys() - wanted.keys()):
        raise BundleFormatError(file, name[:400], "tensors of the target modules only", "another tensor")


def _read_config(bundle: Bundle, task: str, file: str) -> AdapterConfig:
    config = AdapterConfig.read(file, bundle.read(file))
    wanted = _task_type(bundle.task(task).kind)
    if config.task_type != wanted:
        raise BundleFormatError(file, "task_type", wanted or "null", config.task_type or "null")
    return config


def _task_type(kind: TaskKind) -> Literal["CAUSAL_LM"] | None:
    """What PEFT is told of a kind of tasks.

    With SEQ_CLS or TOKEN_CLS it wants the head among the adapter's tensors, but heads are private parameters here.
    """
    return "CAUSAL_LM" if FORMS[kind].writes else None


def _check_rank(file: str, rank: int, weight: WeightEntry) -> None:
    most = min(weight.in_features, weight.out_features)
    if rank > most:
        raise BundleFormatError(file, "r", f"at most {most}, the rank of {weight.name}", rank)


_DTYPES = ("bfloat16", "float32", "bool", "int8", "int16", "int32", "int64", "uint8")
"""Dtypes of parameters that kernels compute with, and of buffers in transformers' modules."""

_MOST_AXES = 8
_MOST_VALUES = 2**48  # a limit for shapes with an empty axis, whose other axes could otherwise have any size


def parameter_files(manifest: Manifest) -> list[str]:
    """Names of the parameter files of a bundle: the one that tasks share, and each task's own."""
    return [RESIDENT, *(private_file(task.name) for task in manifest.tasks)]


def stored_parameters(root: Path, manifest: Manifest, name: str) -> AbstractContextManager[StoredTensors]:
    """A file of parameters, checked and open.

    Args:
        root: bundle directory.
        manifest: the bundle's.
        name: of the file.
    """
    return stored_tensors(root, name, manifest.entry(name), lambda header: _check(header, manifest, name))


def _check(header: Header, manifest: Manifest, name: str) -> None:
    for key, stated in header.items():
        if stated.dtype not in _DTYPES:
            raise BundleFormatError(name, key[:400], f"one of {', '.join(_DTYPES)}", stated.dtype)
        if len(stated.shape) > _MOST_AXES or math.prod(max(1, axis) for axis in stated.shape) > _MOST_VALUES:
            raise BundleFormatError(name, key[:400], f"at most {_MOST_AXES} axes and {_MOST_VALUES} values", stated)
    check_whole(header, manifest.whole_weights, manifest.block_shape, name)

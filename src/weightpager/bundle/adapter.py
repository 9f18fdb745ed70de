"""A task's low-rank parts in PEFT's layout: ``tasks/<task>/adapter_config.json`` and ``adapter_model.safetensors``.

PEFT itself can load them onto the task's exported model's architecture; here they are added to paged weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from weightpager.bundle.files.strict import Strict
from weightpager.bundle.files.tensor_file import Header, StoredTensors, TensorInfo, read_arrays, stored_tensors
from weightpager.bundle.format.manifest import FORMS, Manifest, TaskKind, WeightEntry
from weightpager.bundle.format.names import RESIDENT, adapter_files, private_file
from weightpager.bundle.format.whole_weight import check_whole
from weightpager.bundle.reader import Bundle
from weightpager.errors import BundleFormatError

BASE = "base_model."
"""How the canonical name of every paged weight begins."""

MOST_RANK = 1024
"""The largest rank of a low-rank part."""

_PEFT = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LowRank:
    """What is added to one paged weight: ``up @ down``, PEFT's scaling folded in.

    Attributes:
        down: float32 [rank, in_features], PEFT's A.
        up: float32 [out_features, rank], PEFT's B.
    """

    down: Float32
    up: Float32


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


def has_adapter(bundle: Bundle, task: str) -> bool:
    return any(file in bundle.manifest.files for file in adapter_files(task))


def adapter_bytes(bundle: Bundle, task: str) -> int:
    """Bytes of a task's low-rank parts; 0 if it has none."""
    return bundle.entry(adapter_files(task)[1]).bytes if has_adapter(bundle, task) else 0


def serialise(
    parts: Mapping[str, LowRank], prefix: str, kind: TaskKind
) -> tuple[AdapterConfig, dict[str, npt.NDArray[Any]]]:
    """A task's parts as PEFT has them.

    Args:
        parts: by canonical name of the paged weight; one rank for all.
        prefix: what the task's module calls its base, such as ``bert``.
        kind: of the task.
    """
    rank = len(next(iter(parts.values())).down)
    modules = {name: f"{prefix}.{name.removeprefix(BASE)}" for name in parts}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, part in parts.items():
        arrays[f"{_PEFT}{modules[name]}{_A}"] = np.ascontiguousarray(part.down)
        arrays[f"{_PEFT}{modules[name]}{_B}"] = np.ascontiguousarray(part.up)
    config = AdapterConfig(
        peft_type="LORA",
        task_type=_task_type(kind),
        base_model_name_or_path=None,
        r=rank,
        lora_alpha=float(rank),
        target_modules=list(modules.values()),
        bias="none",
        inference_mode=True,
    )
    return config, arrays


def read_adapter(bundle: Bundle, task: str) -> dict[str, LowRank]:
    """A task's low-rank parts by canonical name of the paged weight; empty if it has none.

    Raises:
        BundleFormatError: a file is damaged or missing, or says anything that doesn't fit the paged weights.
    """
    if not has_adapter(bundle, task):
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

"""A checkpoint: a model directory's weights in a module for one kind of tasks, read and checked once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from weightpager.backends.torch.architecture import BASE, CLASSES, class_of
from weightpager.bundle.format.manifest import TaskKind
from weightpager.bundle.writer import storage_errors
from weightpager.compiler.model.directory import ModelDirectory, call
from weightpager.compiler.model.paged_weights import canonical, parameters, replace_tensors
from weightpager.errors import CompileError
from weightpager.nn.experts import set_upright
from weightpager.nn.skeleton import empty_on_meta


@dataclass(frozen=True)
class Checkpoint:
    """A module of transformers' with weights that are all there and finite.

    Attributes:
        model: the module, in the directory's dtype and in evaluation mode; linear layers hold their weights as
            [out, in], also those that are saved otherwise. Values may be mapped from the directory's files.
        parameters: the model's parameters, by canonical name.
        where: the words that errors about it begin with.
    """

    model: PreTrainedModel
    parameters: dict[str, Tensor]
    where: str

    @classmethod
    def load(
        cls,
        directory: ModelDirectory,
        kind: TaskKind,
        where: str,
        *,
        may_lack: Callable[[str], bool] = lambda _weight: False,
        hint: str = "",
        seed: int = 0,
        **options: Any,
    ) -> Checkpoint:
        """Load a directory's weights under a head for a kind of tasks.

        Args:
            directory: with the weights.
            kind: of the task.
            where: what errors begin with.
            may_lack: whether the directory may lack a weight, by canonical name.
            hint: what to do if it lacks another one.
            seed: by which new weights are drawn.
            options: settings of the configuration that are changed.

        Raises:
            CompileError: transformers has no such head, or no base under it; a weight is missing or isn't finite.
        """
        config = directory.configured(**options)
        _check_kind(config, kind, directory.path)
        model, info = _from_pretrained(directory.path, kind, config, seed)
        check_base(model, directory.path)
        _check_complete(model, info, where, may_lack, hint)
        tensors = parameters(model)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise CompileError(f"{directory.path}: expected finite weights, found NaN or infinity in {name!r}")
        return cls(model, tensors, where)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the head's classes in the order of their ids."""
        return class_names(self.model.config)

    def with_classes(self) -> Checkpoint:
        """The checkpoint itself, once its head is known to tell classes apart."""
        if len(set(self.classes)) < max(2, len(self.classes)):
            raise CompileError(f"{self.where}: expected two or more different classes, found {', '.join(self.classes)}")
        return self

    def take_head(self, other: Checkpoint) -> None:
        """Copy another checkpoint's head over this one's, in the dtype that it has."""
        for key, tensor in self.parameters.items():
            theirs = other.parameters.get(key)
            if theirs is None or theirs.shape != tensor.shape:
                shape = "nothing" if theirs is None else list(theirs.shape)
                raise CompileError(f"{other.where}: expected {key!r} of shape {list(tensor.shape)}, found {shape}")
            if not key.startswith(BASE):
                tensor.data = theirs.data.clone()

    def share(self, shared: dict[str, Tensor], *, with_head: bool) -> PreTrainedModel:
        """The module over the tensors that tasks share, in place of its own; those that aren't shared yet are its own.

        ``shared`` is by canonical name; what this module has and others may share is added to it.

        Raises:
            CompileError: tensors of the same name differ in shape.
        """
        swap: dict[int, Tensor] = {}
        for name, tensor in self.parameters.items():
            if with_head or name.startswith(BASE):
                first = shared.setdefault(name, tensor)
                if first.shape != tensor.shape:
                    raise CompileError(f"{self.where}: {name!r} differs in shape between tasks")
                swap[id(tensor)] = first
        replace_tensors(self.model, swap)
        return self.model

    def has_base_of(self, other: Checkpoint) -> bool:
        """Whether everything but the heads is equal."""
        ours = self.parameters.items()
        return all(
            torch.equal(other.parameters[key].float(), tensor.float()) for key, tensor in ours if key.startswith(BASE)
        )


def class_names(config: PretrainedConfig) -> tuple[str, ...]:
    """A head's classes in the order of their ids."""
    return tuple(str(config.id2label.get(number, f"LABEL_{number}")) for number in range(config.num_labels))


def check_base(model: PreTrainedModel, path: Path) -> None:
    """Refuse a model that isn't a head over a base model, which is what tasks share."""
    if model.base_model is model:
        raise CompileError(
            f"{path}: expected a head over one base model, which tasks share, found {type(model).__name__}, whose "
            f"layers lie beside its head{_two_encoders(model.config)}"
        )


def _check_kind(config: PretrainedConfig, kind: TaskKind, path: Path) -> None:
    able = [other for other in CLASSES if type(config) in class_of(other, config)._model_mapping]
    if kind not in able:
        instead = f"it has one for {' and '.join(able)}" if able else "nor for any other kind of task"
        raise CompileError(
            f"{path}: expected a model that can have a head for {kind}, found {config.model_type}, "
            f"for which transformers has none; {instead}{_two_encoders(config)}"
        )


def _two_encoders(config: PretrainedConfig) -> str:
    if not (hasattr(config, "text_config") and hasattr(config, "vision_config")):
        return ""
    return ". It is a text and a vision encoder side by side, and tasks of a bundle share one model"


def _from_pretrained(
    path: Path, kind: TaskKind, config: PretrainedConfig, seed: int
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The module, and how its loading went."""
    with torch.random.fork_rng(devices=[]):
        with empty_on_meta():  # which stops where the configuration asks for too much
            call(path, class_of(kind, config).from_config, config, trust_remote_code=False)
        torch.manual_seed(seed)
        model, info = call(
            path, class_of(kind, config).from_pretrained, path, config=config, output_loading_info=True,
            ignore_mismatched_sizes=True, trust_remote_code=False, local_files_only=True,
        )  # fmt: skip
    set_upright(model)
    return model.eval(), info


def _check_complete(
    model: PreTrainedModel, info: dict[str, Any], where: str, may_lack: Callable[[str], bool], hint: str
) -> None:
    """Refuse weights that transformers filled with random numbers, except those that will be trained or copied."""
    prefix = model.base_model_prefix + "."
    absent = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    for name in sorted(canonical(name, prefix) for name in absent):
        if not may_lack(name):
            raise CompileError(f"{where}: expected the weight {name!r}, the checkpoint has none of that shape{hint}")


_LEAST = 1 << 20
"""Bytes below which a tensor stays in memory: norms and biases are many, and small."""


@dataclass(frozen=True)
class Scratch:
    """Where a compile holds what is as large as its model: in memory, or in files that are mapped.

    A mapped file is page cache: it is written out and taken out of memory where that is short, and read again when it
    is used. So what is held this way need not fit, and a control group's limit is kept all the same.

    Attributes:
        folder: the folder in which files are made; they have no names, so that nothing is left whatever stops the
            compile. None holds all in memory.
    """

    folder: Path | None = None

    def hold(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The same values, in ``dtype`` if one is given; the very tensor where it can stay as it is."""
        dtype = dtype or tensor.dtype
        size = tensor.numel() * dtype.itemsize
        if self.folder is None or size < _LEAST:
            return tensor.to(dtype)
        with storage_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=self.folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so here, not by a signal later
                mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=dtype)
        return mapped.view(tensor.shape).copy_(tensor)


IN_MEMORY = Scratch()


def widen(models: Iterable[PreTrainedModel], scratch: Scratch) -> None:
    """Turn what modules hold into float32, held in ``scratch``; each tensor once, and it stays the same object."""
    seen: set[int] = set()
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and id(tensor) not in seen:
                seen.add(id(tensor))
                tensor.data = scratch.hold(tensor.data, torch.float32)

"""The bundle that new tasks are added to: a model whose kept blocks and resident parameters don't change any more."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from torch import Tensor
from transformers import PretrainedConfig

from weightpager.backends.torch import architecture
from weightpager.backends.torch.architecture import BASE
from weightpager.backends.torch.parameters import read_parameters, read_rows, widened
from weightpager.blocks import MAX_TASKS
from weightpager.bundle import Bundle
from weightpager.bundle.format.manifest import Pictures
from weightpager.bundle.format.names import RESIDENT
from weightpager.bundle.format.placement import Permutations
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo, parameters
from weightpager.compiler.model.directory import PLAIN
from weightpager.compiler.model.parameter_format import ParameterFormat
from weightpager.compiler.reorder.apply import apply, for_new_tasks
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.task_file.sections import VisionSpec
from weightpager.errors import CompileError, ConfigError
from weightpager.page_dtype import decode
from weightpager.store import BlockReader

_ANY = {"architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id", "pad_token_id", *PLAIN}
"""Keys of a configuration that may differ: the base computes the same."""


class BaseBundle:
    """A bundle as the start of a larger one.

    Attributes:
        keep: True where a task keeps a block, [blocks, tasks] by paged weight.
        locations: paged weight → int64 [blocks], where a block lies; −1 where no task keeps it. Of several versions it
            is the one that most tasks use.
        shared: paged weight → [blocks, tasks], who uses that version of it.
        resident: the parameters that its tasks share, by name.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.keep: dict[str, npt.NDArray[np.bool_]] = {}
        self.locations: dict[str, npt.NDArray[np.int64]] = {}
        self.shared: dict[str, npt.NDArray[np.bool_]] = {}
        users = bundle.placement.users()
        for weight, (blocks, locations) in zip(bundle.manifest.weights, bundle.placement.by_weight(), strict=True):
            where = np.full((bundle.manifest.grid(weight).count, len(bundle.tasks)), -1, np.int64)  # [blocks, tasks]
            for number in range(len(bundle.tasks)):
                of_task = (users[locations] >> np.uint64(number) & np.uint64(1)).astype(bool)
                where[blocks[of_task], number] = locations[of_task]
            most_used = _most_used(where)
            self.keep[weight.name], self.locations[weight.name] = where >= 0, most_used
            self.shared[weight.name] = (where >= 0) & (where == most_used[:, None])
        self.resident: Mapping[str, Tensor] = widened(bundle, read_parameters(bundle, RESIDENT)) | read_rows(bundle)

    @classmethod
    def open(cls, path: str | Path) -> BaseBundle:
        """Open a bundle directory."""
        return cls(Bundle.open(path))

    def identity(self) -> str:
        """A hash of all that is in the bundle."""
        return blake3(self.bundle.manifest.dump() + self.bundle.index.ids.tobytes()).hexdigest()

    def with_base_settings(self, task_file: TaskFile) -> TaskFile:
        """The task file with the bundle's block, dtype, page, rows and picture tower."""
        changes, pictures = self._settings, self.bundle.pictures
        if pictures is not None:
            changes["vision"] = self._vision(pictures, task_file.vision)
        return task_file.model_copy(update=changes)

    def refuse_unsuited(self, task_file: TaskFile) -> None:
        """See that tasks can be added as their task file says. Raises `ConfigError` otherwise."""
        if task_file.fit is not None:
            raise ConfigError("fit: expected none with a base, whose dtype and pages stay; state sparsity")
        if task_file.keep is not None:
            raise ConfigError("keep: expected none with a base, whose masks stay; state sparsity")
        if task_file.units.share is not None:
            raise ConfigError("units.share: expected none with a base; state one unit for all that new tasks drop")
        self._refuse_other_settings(task_file)
        self._refuse_names(task_file)
        _refuse_other_values(task_file)
        for key in ("max_switch", "accuracy_loss"):
            if getattr(task_file, key) is not None:
                raise ConfigError(f"{key}: expected none with a base, whose masks stay; state alignment")
        if task_file.compare == "all":
            raise ConfigError("compare: expected none with a base: one mask for all tasks would change the old ones")

    def adopt(self, source: DenseModel) -> DenseModel:
        """Put the bundle's values into a dense model: order, blocks, resident parameters, configuration, preprocessor.

        Blocks that no task of the bundle keeps, and parameters that the bundle doesn't share, stay the model's.

        Raises:
            CompileError: the model is of another architecture.
            BundleError, StoreError: a file or page of the bundle can't be used.
        """
        config = architecture.read_config(self.bundle)
        self._check_config(source, config)
        self._check_weights(source)
        added = self.added(source)
        apply(source.models, Permutations({**self.bundle.permutations().orders, **added.orders}))
        self._fill_blocks(source)
        for task, model in source.models.items():
            labelled = source.task_file.tasks[task].labelled
            for name, tensor in parameters(model).items():
                if name in self.resident and (name.startswith(BASE) or not labelled):
                    self._fill(source, name, tensor)
        if source.images is not None:
            source = replace(source, images=architecture.image_reader(self.bundle))
        if source.tokenizer is None:
            return replace(source, config=config)
        tokenizer = architecture.tokenizer(self.bundle)
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        return replace(source, config=config, tokenizer=tokenizer, pictures=self.bundle.pictures)

    def added(self, source: DenseModel) -> Permutations:
        """The permutations that bring what new tasks add into the bundle's order."""
        return for_new_tasks(self.bundle.permutations(), source.models)

    def holds(self, name: str, tensor: Tensor, form: ParameterFormat) -> bool:
        """Whether the bundle's resident parameters, or tables, have exactly this one, in a dtype that is wide enough.

        A table that older tasks only look rows up in may be too narrow, or not whole in memory, for one that
        multiplies by it.
        """
        stored, dtype = self.resident.get(name), form.dtype_of(name, tensor)
        if stored is None or stored.shape != tensor.shape or stored.dtype.itemsize < dtype.itemsize:
            return False
        if name in self.bundle.row_tables and name not in form.tables:
            return False
        return torch.equal(stored, tensor.to(stored.dtype))

    @property
    def _settings(self) -> dict[str, Any]:
        """The keys of a task file that the bundle decides, and its values of them."""
        manifest = self.bundle.manifest
        return {
            "block": manifest.block_shape,
            "dtype": manifest.dtype,
            "page": manifest.page_bytes,
            "rows": "on-demand" if manifest.row_tables else "resident",
        }

    def _vision(self, pictures: Pictures, stated: VisionSpec) -> VisionSpec:
        """A tower that tasks share is cut as it is; where each has its own, new tasks say how much of it they drop."""
        if pictures.blocks == "own":
            return stated.model_copy(update={"blocks": "own"})
        weights = self.bundle.manifest.weights
        kept = [self.keep[each.name][:, 0] for each in weights if each.layer < pictures.layers]
        return VisionSpec(sparsity=float(1 - np.concatenate(kept).mean()) if kept else None)

    def _refuse_other_settings(self, task_file: TaskFile) -> None:
        pictures, vision = self.bundle.pictures, task_file.vision
        if pictures is not None and "vision" in task_file.model_fields_set:
            if vision.blocks != pictures.blocks:
                found = f"{pictures.blocks}, as of the base {self.bundle.path}, found {vision.blocks}"
                raise ConfigError(f"vision: expected {found}")
            if pictures.blocks == "shared" and vision.sparsity is not None:
                raise ConfigError("vision.sparsity: expected none with a base whose tasks share the tower, which stays")
        settings = self._settings
        if not self.bundle.row_tables:  # so be it where none was large enough, too
            del settings["rows"]
        for key, value in settings.items():
            stated = getattr(task_file, key)
            if key in task_file.model_fields_set and stated is not None and stated != value:
                raise ConfigError(f"{key}: expected {value}, that of the base {self.bundle.path}, found {stated}")

    def _refuse_names(self, task_file: TaskFile) -> None:
        """Refuse names that the bundle's tasks have, and more tasks than there may be."""
        if bare := [name for name, task in task_file.tasks.items() if task.train is None]:
            raise ConfigError(
                f"tasks.{bare[0]}: expected train and eval with --base, found neither; 'weightpager add' adds a task "
                "that takes another's blocks"
            )
        if taken := [name for name in task_file.tasks if name in self.bundle.tasks]:
            raise ConfigError(f"tasks.{taken[0]}: the base {self.bundle.path} has a task of that name; choose another")
        if len(task_file.tasks) + len(self.bundle.tasks) > MAX_TASKS:
            most = MAX_TASKS - len(self.bundle.tasks)
            raise ConfigError(f"tasks: expected at most {most} beside those of the base, found {len(task_file.tasks)}")

    def _check_config(self, source: DenseModel, config: PretrainedConfig) -> None:
        ours, theirs = (_flat(each.to_dict(), each.sub_configs) for each in (config, source.config))
        for key in sorted(ours.keys() | theirs.keys(), key=lambda key: (not key.endswith("model_type"), key)):
            if ours.get(key) != theirs.get(key):
                found = f"{ours.get(key)!r}, that of the base {self.bundle.path}, found {theirs.get(key)!r}"
                raise CompileError(f"{source.path / 'config.json'}: {key}: expected {found}")

    def _check_weights(self, source: DenseModel) -> None:
        wanted = [(w.name, w.layer, w.out_features, w.in_features) for w in self.bundle.manifest.weights]
        found = [(i.name, i.layer, i.grid.out_features, i.grid.in_features) for i in source.paged]
        if wanted != found:
            odd = sorted(set(wanted) ^ set(found))[0][0] if set(wanted) != set(found) else "their order"
            raise CompileError(
                f"{source.path}: expected the paged weights of the base {self.bundle.path}, found others: {odd}"
            )

    def _fill(self, source: DenseModel, name: str, tensor: Tensor) -> None:
        value = self.resident[name]
        if value.shape != tensor.shape:
            raise CompileError(
                f"{source.path}: {name}: expected shape {list(value.shape)}, that of the base, "
                f"found {list(tensor.shape)}"
            )
        with torch.no_grad():
            tensor.copy_(value)

    def _fill_blocks(self, source: DenseModel) -> None:
        reader = BlockReader(self.bundle)
        task = next(iter(source.models))
        try:
            for info in source.paged:
                weight = source.linear(task, info.name).weight
                with torch.no_grad():
                    weight.copy_(torch.from_numpy(self._completed(info, weight.detach(), reader)))
        finally:
            reader.close()

    def _completed(self, info: PagedWeightInfo, weight: Tensor, reader: BlockReader) -> npt.NDArray[Any]:
        """A weight ``[out_features, in_features]`` with the blocks that the bundle has."""
        has = np.flatnonzero(self.locations[info.name] >= 0)
        blocks = reader.read(self.locations[info.name][has])  # [N, block bytes]
        cut = info.grid.cut(weight.numpy()).copy()  # [rows, cols, BH, BW]
        cut[np.divmod(has, info.grid.cols)] = decode(blocks, info.grid.block, self.bundle.manifest.dtype)
        return info.grid.join(cut)


def _flat(settings: Mapping[str, Any], parts: Collection[str]) -> dict[str, Any]:
    """The settings that must be the same, those of the models that a model is made of by ``part.key``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key in parts and isinstance(value, dict):
            flat |= {f"{key}.{inner}": each for inner, each in _flat(value, ()).items()}
        elif not key.startswith("_") and key not in _ANY:
            flat[key] = value
    return flat


def _refuse_other_values(task_file: TaskFile) -> None:
    """Refuse recovery, and checkpoints, that would change the values of shared blocks."""
    if task_file.recover.refits:
        raise ConfigError(
            "recover: expected neither method nor start to be closed-form, which changes shared values: those of a "
            "base stay"
        )
    if changed := [name for name, task in task_file.tasks.items() if task.checkpoint is not None]:
        raise ConfigError(
            f"tasks.{changed[0]}.checkpoint: expected none with a base, whose blocks a task takes over; compile all "
            "tasks together, or give this one's 'head'"
        )


def _most_used(where: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The location of each block's most used version, of equals the first, ``[blocks]``; −1 where there is none."""
    blocks, tasks = np.nonzero(where >= 0)
    versions, users = np.unique(np.stack([blocks, where[blocks, tasks]], 1), axis=0, return_counts=True)
    locations = np.full(len(where), -1, np.int64)
    rising = np.lexsort((-versions[:, 1], users))
    locations[versions[rising, 0]] = versions[rising, 1]  # the last one written is the most used, then the first
    return locations

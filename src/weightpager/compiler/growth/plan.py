"""`GrowthPlan`: what new tasks add to a base, decided before the first byte is written. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedModel

import weightpager
from weightpager.bundle import Manifest, PageIndex
from weightpager.bundle.format.placement import Placement
from weightpager.compiler.base_bundle import BaseBundle
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo, parameters
from weightpager.compiler.model.parameter_format import ParameterFormat
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.pack import pack
from weightpager.compiler.packing.plan import BundlePlan
from weightpager.compiler.packing.stored_blocks import StoredBlocks
from weightpager.compiler.packing.write import page_file_counts
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.training.masks import Masks
from weightpager.store import StorageModel
from weightpager.transitions import Transitions


@dataclass(frozen=True)
class GrowthPlan:
    """What a larger bundle adds to its base, and what of the base its new tasks use.

    Attributes:
        base: what is added to.
        added: the pages that are appended, and their tasks; its signatures count the new tasks only.
        reused: paged weight → [blocks, new tasks], True where a task takes the base's block.
    """

    base: BaseBundle
    added: BundlePlan
    reused: dict[str, npt.NDArray[np.bool_]]

    @property
    def source(self) -> DenseModel:
        """The new tasks' modules."""
        return self.added.weights.source

    @cached_property
    def form(self) -> ParameterFormat:
        """The dtypes of the new tasks' own parameters; a weight that the base has keeps its dtype."""
        form = self._form_of(self.source.models)
        return replace(
            form, whole={**form.whole, **{entry.name: entry for entry in self.base.bundle.manifest.whole_weights}}
        )

    def _form_of(self, models: Mapping[str, PreTrainedModel]) -> ParameterFormat:
        manifest = self.base.bundle.manifest
        return ParameterFormat.of(self.source.config, models, manifest.dtype, manifest.block_shape)

    @cached_property
    def private(self) -> dict[str, dict[str, Tensor]]:
        """What each new task has for itself, by task and canonical name."""
        return {task.name: self._private_of(task.name) for task in self.added.tasks}

    def _private_of(self, task: str) -> dict[str, Tensor]:
        """The same of one task. Whether the base holds it depends on what this task alone does with it."""
        model, skipped = self.source.models[task], {f"{info.name}.weight" for info in self.source.paged}
        form = self._form_of({task: model})
        return {
            name: tensor
            for name, tensor in parameters(model).items()
            if name not in skipped and not self.base.holds(name, tensor, form)
        }

    def reused_locations(self, number: int) -> npt.NDArray[np.int64]:
        """Locations of the base's blocks that new task ``number`` takes."""
        return np.concatenate([self.base.locations[name][here[:, number]] for name, here in self.reused.items()])

    def reused_pages(self, number: int) -> npt.NDArray[np.int64]:
        """The base's pages that hold blocks of new task ``number``."""
        return np.unique(self.reused_locations(number) // self.base.bundle.manifest.blocks_per_page)

    def index(self, ids: npt.NDArray[np.uint8]) -> PageIndex:
        """The page index: the base's pages, those that are added, then the base's rows.

        Args:
            ids: uint8 [pages, 32], of the pages that are added.
        """
        bundle, packing = self.base.bundle, self.added.packing
        signatures = bundle.pages.signatures.copy()
        for number in range(len(self.added.tasks)):
            signatures[self.reused_pages(number)] |= np.uint64(1) << np.uint64(len(bundle.tasks) + number)
        index = PageIndex(
            np.concatenate([bundle.pages.ids, ids]),
            np.concatenate([bundle.pages.layers, packing.layers]),
            np.concatenate([signatures, packing.signatures << np.uint64(len(bundle.tasks))]),
        )
        return index.with_rows(bundle.row_ids)

    def placement(self) -> Placement:
        """The base's block tables, and those of the new tasks, whose pages follow."""
        old, packing = self.base.bundle.placement, self.added.packing
        used = [old.locations_of(task) for task in range(len(self.base.bundle.tasks))]
        for number in range(len(self.added.tasks)):
            locations = packing.locations_of(number) + old.locations
            used.append(np.concatenate([self.reused_locations(number), locations]))
        layers = np.concatenate([old.layers, packing.layers])
        blocks = np.concatenate([old.blocks, packing.blocks_in_layers(old.numbers)])
        return Placement.of(old.numbers, layers, blocks, used)

    def manifest(self) -> Manifest:
        """The base's manifest, with what is added."""
        old, whole = self.base.bundle.manifest, self.form.whole
        rows = {table.name for table in old.row_tables}
        not_paged = {name: reason for name, reason in self.source.resident.items() if name not in rows}
        known = {entry.name for entry in old.whole_weights}
        private = {name for values in self.private.values() for name in values if name in whole}
        changes = {
            "generator": f"weightpager {weightpager.__version__}",
            "tasks": [*old.tasks, *self.added.tasks],
            "transitions": self.added.transitions.matrix.tolist(),
            "page_files": [*old.page_files, *page_file_counts(self.added.packing)],
            "resident_reasons": {**not_paged, **old.resident_reasons},
            "whole_weights": [*old.whole_weights, *(whole[name] for name in sorted(private - known))],
        }
        return msgspec.structs.replace(old, **changes)


def plan_growth(base: BaseBundle, prepared: Prepared, masks: Masks, weights: TaskWeights) -> GrowthPlan:
    """Find out what the base has, and pack the rest."""
    manifest, entries = base.bundle.manifest, prepared.entries()
    keep = {info.name: masks.keep[info.name][:, : len(entries)] for info in weights.source.paged}
    reused, stored = {}, []
    for info in weights.source.paged:
        here = keep[info.name] & (base.locations[info.name] >= 0)[:, None] & ~_private(weights, info)
        stored.append(StoredBlocks.of(info.layer, keep[info.name] & ~here, weights.versions(info)))
        reused[info.name] = here
    rate = Transitions.uniform([task.name for task in entries]).switch_rate()
    packing = pack(stored, base.bundle.block_bytes, rate, StorageModel(), manifest.page_bytes)
    transitions = prepared.source.transitions
    added = BundlePlan(manifest.dtype, weights, keep, packing, entries, transitions, manifest.alignment)
    return GrowthPlan(base, added, reused)


def _private(weights: TaskWeights, info: PagedWeightInfo) -> npt.NDArray[np.bool_]:
    """Where tasks have values of their own, [blocks, tasks]."""
    private = np.zeros((info.grid.count, len(weights.source.models)), bool)
    for number, task in enumerate(weights.source.models):
        of_task = weights.private.get(task, {}).get(info.name)
        if of_task is not None:
            private[of_task.blocks, number] = True
    return private

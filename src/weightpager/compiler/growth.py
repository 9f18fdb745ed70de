"""More tasks for a bundle whose tasks stay bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import msgspec
import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedModel

import weightpager
from weightpager.bundle import BundleWriter, Manifest, PageIndex, TaskKind
from weightpager.bundle.format.names import REPORT, private_file
from weightpager.bundle.format.placement import Placement
from weightpager.bundle.low_rank_pages import LowRankPages
from weightpager.bundle.report.compile_report import CompileReport, Growth, has_report, read_report
from weightpager.bundle.task_subset import TaskSubset
from weightpager.compiler.alignment.structure_aligner import align_new_tasks
from weightpager.compiler.base_bundle import BaseBundle
from weightpager.compiler.graph.export import write_graphs
from weightpager.compiler.measure import Written, common_fields, measure_written
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo, parameters
from weightpager.compiler.model.parameter_format import ParameterFormat
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.pack import StoredBlocks, pack
from weightpager.compiler.packing.plan import BundlePlan, entries
from weightpager.compiler.packing.write import image_shape, page_file_counts, write_pages
from weightpager.compiler.recovery.finetune import Lesson
from weightpager.compiler.recovery.own_parameters import train_own
from weightpager.compiler.recovery.private_blocks import choose_private_blocks, train_private
from weightpager.compiler.resume.journal import CompileRun
from weightpager.compiler.selection.block_choice import parts, spread
from weightpager.compiler.selection.experts import check_left
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.training.masks import Masks
from weightpager.store import StorageModel
from weightpager.transitions import Transitions


@dataclass(frozen=True)
class GrowthPlan:
    """What a larger bundle adds to its base, and what of the base its new tasks use.

    Attributes:
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

    def index(self, ids: npt.NDArray[np.uint8]) -> PageIndex:
        """The base's pages of blocks, and those that are added with these ``ids``, uint8 [pages, 32]."""
        bundle, packing = self.base.bundle, self.added.packing
        signatures = bundle.pages.signatures.copy()
        for number in range(len(self.added.tasks)):
            pages = np.unique(self.reused_locations(number) // bundle.manifest.blocks_per_page)
            signatures[pages] |= np.uint64(1) << np.uint64(len(bundle.tasks) + number)
        return PageIndex(
            np.concatenate([bundle.pages.ids, ids]),
            np.concatenate([bundle.pages.layers, packing.layers]),
            np.concatenate([signatures, packing.signatures << np.uint64(len(bundle.tasks))]),
        )

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
    manifest, tasks = base.bundle.manifest, entries(prepared, masks.keep)
    keep = {info.name: masks.keep[info.name][:, : len(tasks)] for info in weights.source.paged}
    reused, stored = {}, []
    for info in weights.source.paged:
        here = keep[info.name] & (base.locations[info.name] >= 0)[:, None] & ~_private(weights, info)
        stored.append(StoredBlocks.of(info.layer, keep[info.name] & ~here, weights.versions(info)))
        reused[info.name] = here
    rate = Transitions.uniform([task.name for task in tasks]).switch_rate()
    packing = pack(stored, base.bundle.block_bytes, rate, StorageModel(), manifest.page_bytes)
    transitions = prepared.source.transitions
    added = BundlePlan(manifest.dtype, weights, keep, packing, tasks, transitions, manifest.alignment)
    return GrowthPlan(base, added, reused)


def _private(weights: TaskWeights, info: PagedWeightInfo) -> npt.NDArray[np.bool_]:
    """Where tasks have values of their own, [blocks, tasks]."""
    private = np.zeros((info.grid.count, len(weights.source.models)), bool)
    for number, task in enumerate(weights.source.models):
        of_task = weights.private.get(task, {}).get(info.name)
        if of_task is not None:
            private[of_task.blocks, number] = True
    return private


def write_growth(writer: BundleWriter, plan: GrowthPlan) -> dict[TaskKind, str]:
    """Link the base's pages and write all other files, the manifest last.

    Returns:
        The kinds of tasks that have no graph, and why.
    """
    bundle, tasks = plan.base.bundle, plan.added.tasks
    for name in bundle.manifest.page_file_names():
        writer.link(name, bundle.path / name)
    ids = write_pages(writer, plan.added, first=len(bundle.manifest.page_files))
    TaskSubset(bundle, tuple(bundle.tasks)).carry_over(writer, plan.base.added(plan.source))
    for task in tasks:
        writer.put(private_file(task.name), plan.form.content(plan.private[task.name]))
    low_rank = LowRankPages.write(writer, plan.manifest(), plan.added.weights.low_rank)
    writer.put_placement(plan.placement().followed_by_empty(low_rank.index.layers))
    writer.put_index(plan.index(ids).followed_by(low_rank.index).with_rows(bundle.row_ids))
    manifest = low_rank.manifest
    kinds = [task.kind for task in manifest.tasks]
    without_graph = write_graphs(writer, plan.source.config, kinds, image_shape(plan.source))
    writer.finish(manifest)
    return without_graph


def grow(writer: BundleWriter, base: BaseBundle, prepared: Prepared, run: CompileRun) -> CompileReport:
    """Choose, recover, write and measure the new tasks on the base's model; the base is left as it is."""
    with run.stage("align", one_step=True):
        masks = _masks(base, prepared)
    with run.stage("recover"):
        weights = _recover(prepared, masks, run)
    with run.stage("pack", one_step=True):
        plan = plan_growth(base, prepared, masks, weights)
    with run.stage("write", one_step=True):
        without_graph = write_growth(writer, plan)
    with run.stage("measure sparse"):
        written = measure_written(writer.root, prepared.data, run.progress, run.workers)
    report = _report(written, plan, prepared, run).model_copy(update={"without_graph": without_graph})
    writer.put(REPORT, report.dump())
    writer.finish(written.bundle.manifest)  # once more: it lists the report, for which the bundle had to be read
    return report


def _masks(base: BaseBundle, prepared: Prepared) -> Masks:
    """The keep masks of all tasks, the new ones first."""
    task_file, paged = prepared.task_file, prepared.source.paged
    aligned = [
        (part, part.whole(align_new_tasks(part.problem, part.gathered(base.shared))))
        for part in parts(prepared, prepared.source.transitions.switch_rate())
    ]
    new = spread(paged, aligned, len(task_file.tasks))
    for info in prepared.source.tower if prepared.source.shares_tower else ():  # whatever they would rather have
        new[info.name][:] = base.keep[info.name][:, :1]
    masks = {name: np.concatenate([mask, base.keep[name]], axis=1) for name, mask in new.items()}
    chosen = Masks((*task_file.tasks, *base.bundle.tasks), masks)
    check_left(prepared.source, chosen)
    return chosen


def _recover(prepared: Prepared, masks: Masks, run: CompileRun) -> TaskWeights:
    """The new tasks' values under their masks. Blocks of old tasks stay; who changes one gets a private copy."""
    source = prepared.source
    spec = source.task_file.recover
    sparse = replace(source, models=copy.deepcopy(source.models))
    if spec.method == "finetune":
        each = spec.model_copy(update={"private_steps": max(1, spec.steps // len(source.models))})
        lesson = Lesson(source, sparse, masks, prepared.data, each)
        with lesson.placed():
            told = partial(run.progress, "fine-tune")
            return train_private(lesson, choose_private_blocks(lesson), run.journal, told, run.workers_on(source))
    told = partial(run.progress, "train own parameters")
    train_own(sparse, prepared.data, masks, "own-sparse", run.journal, told, run.workers_on(source))
    return TaskWeights(sparse)


def _report(written: Written, plan: GrowthPlan, prepared: Prepared, run: CompileRun) -> CompileReport:
    """The report on all tasks; of the old ones it says what the base's report said, if there is one."""
    bundle, base, names = written.bundle, plan.base.bundle, [task.name for task in plan.added.tasks]
    old = read_report(base) if has_report(base) else None
    reused = np.unique(np.concatenate([plan.reused_locations(number) for number in range(len(names))]))
    growth = Growth(
        tasks=names,
        reused_bytes=len(reused) * bundle.block_bytes,
        added_bytes=len(plan.added.packing.layers) * bundle.page_bytes,
        private_bytes=sum(bundle.entry(private_file(name)).bytes + bundle.low_rank_bytes(name) for name in names),
    )
    fields = common_fields(written, prepared, run)
    fields |= {"controls": [], "frontier": [], "growth": growth, "duality_gap": 0.0, "evenness": 0.0}
    fields["alignment"] = base.manifest.alignment
    if old is not None:
        fields |= {
            "tasks": [*old.tasks, *fields["tasks"]],
            "added": old.added,
            "duality_gap": old.duality_gap,
            "tied": {**old.tied, **fields["tied"]},
            "evenness": min(old.evenness, prepared.evenness),
        }
    return CompileReport(**fields)

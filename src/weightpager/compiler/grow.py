"""Adding tasks to a bundle: what is in it stays bit for bit, new tasks reuse its blocks and bring what they lack."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial

import msgspec
import numpy as np
import numpy.typing as npt
from torch import Tensor

import weightpager
from weightpager.bundle import BundleWriter, Manifest, PageIndex, TaskKind
from weightpager.bundle.format.names import REPORT, private_file
from weightpager.bundle.format.placement import Placement
from weightpager.bundle.parts.adapter import adapter_bytes
from weightpager.bundle.report.compile_report import CompileReport, Growth, has_report, read_report
from weightpager.bundle.task_subset import TaskSubset
from weightpager.compiler.base_bundle import BaseBundle
from weightpager.compiler.graph.write import write_graphs
from weightpager.compiler.measuring.measure import Written, measure_written
from weightpager.compiler.measuring.report import common_fields
from weightpager.compiler.model.dense_model import PagedWeightInfo, Source, parameters
from weightpager.compiler.model.parameter_format import ParameterFormat
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.pack import pack
from weightpager.compiler.packing.stored_blocks import StoredBlocks
from weightpager.compiler.packing.write import BundlePlan, image_shape, page_file_counts, write_pages
from weightpager.compiler.recovery.finetune import Lesson
from weightpager.compiler.recovery.low_rank import write_adapters
from weightpager.compiler.recovery.own_parameters import train_own
from weightpager.compiler.recovery.private_blocks import choose, train_private
from weightpager.compiler.resume.run import Run
from weightpager.compiler.selection.experts import check_left
from weightpager.compiler.selection.parts import parts, spread
from weightpager.compiler.selection.placement import place
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.training.masks import Masks
from weightpager.store import StorageModel
from weightpager.trace_file import read_trace
from weightpager.transitions import Transitions


def grow(writer: BundleWriter, base: BaseBundle, prepared: Prepared, run: Run) -> CompileReport:
    """Choose, recover, write and measure the new tasks.

    Args:
        writer: where the larger bundle goes.
        base: what it starts from; left as it is.
        prepared: the new tasks, on the base's model.
        run: in which recovery goes on.

    Raises:
        CompileError: training diverged, or the storage refused a write.
    """
    transitions = _transitions(base, prepared)
    with run.stage("align"):
        masks = _masks(base, prepared, transitions)
    with run.stage("recover"):
        weights = _recover(prepared, masks, run)
    with run.stage("pack"):
        added = _Addition.of(base, prepared, masks, weights, transitions)
    with run.stage("write"):
        manifest, without_graph = added.write(writer)
    with run.stage("measure sparse"):
        written = measure_written(writer.root, prepared.data, run.progress, run.workers)
    report = _report(written, added, prepared, run).model_copy(update={"without_graph": without_graph})
    writer.put(REPORT, report.dump())
    writer.finish(manifest)
    return report


def _transitions(base: BaseBundle, prepared: Prepared) -> Transitions:
    """Transitions between all tasks, the old ones first."""
    names = tuple(base.bundle.tasks)
    old = Transitions(names, np.array(base.bundle.manifest.transitions))
    new, trace = tuple(prepared.source.task_file.tasks), prepared.source.task_file.transitions
    if trace is None:
        return old.extended(new)
    return Transitions.from_trace((*names, *new), read_trace(trace, (*names, *new)))


def _masks(base: BaseBundle, prepared: Prepared, transitions: Transitions) -> Masks:
    """The keep masks of all tasks, the new ones first."""
    task_file, paged = prepared.source.task_file, prepared.source.paged
    found = [
        (part, place(part.problem, part.gathered(base.shared))) for part in parts(prepared, transitions.switch_rate())
    ]
    placed = spread(paged, found, len(task_file.tasks))
    masks = {name: np.concatenate([own, base.keep[name]], axis=1) for name, own in placed.items()}
    chosen = Masks((*task_file.tasks, *base.bundle.tasks), masks)
    check_left(prepared.source, chosen)
    return chosen


def _recover(prepared: Prepared, masks: Masks, run: Run) -> TaskWeights:
    """The new tasks' values under their masks. Blocks of old tasks stay; who changes one gets a private copy."""
    source = prepared.source
    spec = source.task_file.recover
    sparse = replace(source, models=copy.deepcopy(source.models))
    if spec.method == "finetune":
        each = spec.model_copy(update={"private_steps": max(1, spec.steps // len(source.models))})
        lesson = Lesson(source, sparse, masks, prepared.data, each)
        with lesson.placed():
            told = partial(run.progress, "fine-tune")
            return train_private(lesson, choose(lesson), run.journal, told, run.workers_on(source))
    told = partial(run.progress, "train own parameters")
    train_own(sparse, prepared.data, masks, "own-sparse", run.journal, told, run.workers_on(source))
    return TaskWeights(sparse)


@dataclass(frozen=True)
class _Addition:
    """All that has been decided before the first byte is written.

    Attributes:
        base: what is added to.
        plan: of the pages that are appended; its signatures count the new tasks only.
        reused: paged weight → [blocks, new tasks], True where a task takes the base's block.
    """

    base: BaseBundle
    plan: BundlePlan
    reused: dict[str, npt.NDArray[np.bool_]]

    @classmethod
    def of(
        cls, base: BaseBundle, prepared: Prepared, masks: Masks, weights: TaskWeights, transitions: Transitions
    ) -> _Addition:
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
        plan = BundlePlan(manifest.dtype, weights, keep, packing, entries, transitions, manifest.alignment)
        return cls(base, plan, reused)

    @property
    def source(self) -> Source:
        """The new tasks' modules."""
        return self.plan.weights.source

    def write(self, writer: BundleWriter) -> tuple[Manifest, dict[TaskKind, str]]:
        """Write all files, the manifest last; it, and the kinds of tasks that have no graph, and why."""
        bundle, packing = self.base.bundle, self.plan.packing
        for name in bundle.manifest.page_file_names():
            writer.link(name, bundle.path / name)
        ids = write_pages(writer, self.plan, first=len(bundle.manifest.page_files))
        old = TaskSubset(bundle, tuple(bundle.tasks))
        old.carry_over(writer, self.base.added(self.source))
        signatures = bundle.pages.signatures.copy()
        for number, task in enumerate(self.plan.tasks):
            writer.put(private_file(task.name), self._form.content(self._private[task.name]))
            signatures[self.reused_pages(number)] |= np.uint64(1) << np.uint64(len(bundle.tasks) + number)
        writer.put_placement(self._placement())
        write_adapters(writer, self.plan.weights, self.plan.tasks)
        index = PageIndex(
            np.concatenate([bundle.pages.ids, ids]),
            np.concatenate([bundle.pages.layers, packing.layers]),
            np.concatenate([signatures, packing.signatures << np.uint64(len(bundle.tasks))]),
        )
        writer.put_index(index.with_rows(bundle.row_ids))
        manifest = self._manifest()
        kinds = [task.kind for task in manifest.tasks]
        without_graph = write_graphs(writer, self.source.config, kinds, image_shape(self.source))
        writer.finish(manifest)
        return manifest, without_graph

    def reused_locations(self, number: int) -> npt.NDArray[np.int64]:
        """Locations of the base's blocks that new task ``number`` takes."""
        return np.concatenate([self.base.locations[name][here[:, number]] for name, here in self.reused.items()])

    def reused_pages(self, number: int) -> npt.NDArray[np.int64]:
        """The base's pages that hold blocks of new task ``number``."""
        return np.unique(self.reused_locations(number) // self.base.bundle.manifest.blocks_per_page)

    @cached_property
    def _private(self) -> dict[str, dict[str, Tensor]]:
        """What each new task has for itself, by task and canonical name."""
        skipped = {f"{info.name}.weight" for info in self.source.paged}
        return {
            task.name: {
                name: tensor
                for name, tensor in parameters(self.source.models[task.name]).items()
                if name not in skipped and not self.base.holds(name, tensor, self._form)
            }
            for task in self.plan.tasks
        }

    @cached_property
    def _form(self) -> ParameterFormat:
        """As what the new tasks' own parameters are written; a table that the base has keeps its dtype."""
        manifest = self.base.bundle.manifest
        form = ParameterFormat.of(self.source.config, self.source.models, manifest.dtype, manifest.block_shape)
        return replace(form, tied={**form.tied, **{table.name: table for table in manifest.tied_tables}})

    def _placement(self) -> Placement:
        """The base's block tables, and those of the new tasks, whose pages follow."""
        old, packing = self.base.bundle.placement, self.plan.packing
        used = [old.locations_of(task) for task in range(len(self.base.bundle.tasks))]
        for number in range(len(self.plan.tasks)):
            own = packing.locations_of(number) + old.locations
            used.append(np.concatenate([self.reused_locations(number), own]))
        layers = np.concatenate([old.layers, packing.layers])
        blocks = np.concatenate([old.blocks, packing.blocks_in_layers(old.numbers)])
        return Placement.of(old.numbers, layers, blocks, used)

    def _manifest(self) -> Manifest:
        whole, tied = self.base.bundle.manifest, self._form.tied
        known = {table.name for table in whole.tied_tables}
        own = {name for values in self._private.values() for name in values if name in tied}
        changes = {
            "generator": f"weightpager {weightpager.__version__}",
            "tasks": [*whole.tasks, *self.plan.tasks],
            "transitions": self.plan.transitions.matrix.tolist(),
            "page_files": [*whole.page_files, *page_file_counts(self.plan.packing)],
            "resident_reasons": {**self.source.resident, **whole.resident_reasons},
            "tied_tables": [*whole.tied_tables, *(tied[name] for name in sorted(own - known))],
        }
        return msgspec.structs.replace(whole, **changes)


def _private(weights: TaskWeights, info: PagedWeightInfo) -> npt.NDArray[np.bool_]:
    """Where tasks have values of their own, [blocks, tasks]."""
    found = np.zeros((info.grid.count, len(weights.source.models)), bool)
    for number, task in enumerate(weights.source.models):
        own = weights.private.get(task, {}).get(info.name)
        if own is not None:
            found[own.blocks, number] = True
    return found


def _report(written: Written, added: _Addition, prepared: Prepared, run: Run) -> CompileReport:
    """Of all tasks; what it tells of the old ones is what the base's report said, if it has one."""
    bundle, base, names = written.bundle, added.base.bundle, [task.name for task in added.plan.tasks]
    old = read_report(base) if has_report(base) else None
    reused = np.unique(np.concatenate([added.reused_locations(number) for number in range(len(names))]))
    growth = Growth(
        tasks=names,
        reused_bytes=len(reused) * bundle.block_bytes,
        added_bytes=len(added.plan.packing.layers) * bundle.page_bytes,
        private_bytes=sum(bundle.entry(private_file(name)).bytes + adapter_bytes(bundle, name) for name in names),
    )
    found = common_fields(written, prepared, run)
    found |= {"controls": [], "frontier": [], "growth": growth, "duality_gap": 0.0, "alignment": None, "evenness": 0.0}
    if old is not None:
        found |= {
            "tasks": [*old.tasks, *found["tasks"]],
            "duality_gap": old.duality_gap,
            "alignment": old.alignment,
            "tied": {**old.tied, **found["tied"]},
            "evenness": min(old.evenness, prepared.evenness),
        }
    return CompileReport(**found)

"""Adding tasks to a bundle: what is in it stays bit for bit, new tasks reuse its blocks and bring what they lack."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save

import weightpager
from weightpager.bundle import BlockTable, Bundle, BundleWriter, Manifest, PageIndex, TaskEntry
from weightpager.bundle.files.entry import check_file
from weightpager.bundle.format import page_index
from weightpager.bundle.format.names import REPORT, private_file, tables_file
from weightpager.bundle.parts.adapter import adapter_bytes
from weightpager.bundle.report.compile_report import CompileReport, Growth, TaskScore, has_report, read_report
from weightpager.bundle.report.fill import over_read, page_fill
from weightpager.bundle.report.overlap import mean_overlap, overlap
from weightpager.bundle.report.paged_share import paged_share
from weightpager.bundle.task_subset import TaskSubset
from weightpager.compiler.base_bundle import BaseBundle
from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.measuring.comparison import task_score
from weightpager.compiler.measuring.measure import measure_all
from weightpager.compiler.model.dense_model import PagedWeightInfo, Source, parameters
from weightpager.compiler.model.masks import Masks
from weightpager.compiler.model.parameter_format import ParameterFormat
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.pack import pack
from weightpager.compiler.packing.stored_blocks import StoredBlocks
from weightpager.compiler.packing.write import BundlePlan, page_file_counts, write_pages
from weightpager.compiler.recovery.finetune import Lesson
from weightpager.compiler.recovery.low_rank import write_adapters
from weightpager.compiler.recovery.own_parameters import separate, train_own
from weightpager.compiler.recovery.private_blocks import choose, train_private
from weightpager.compiler.recovery.train import trained_tasks
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.resume.stage_times import Clock
from weightpager.compiler.selection.block_choice import alignment_problem
from weightpager.compiler.selection.placement import place
from weightpager.compiler.selection.prepared import Prepared
from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager.progress import Progress, Steps
from weightpager.trace_file import read_trace
from weightpager.transitions import Transitions


def grow(
    writer: BundleWriter, base: BaseBundle, prepared: Prepared, journal: Journal, progress: Progress
) -> CompileReport:
    """Choose, recover, write and measure the new tasks.

    Args:
        writer: where the larger bundle goes.
        base: what it starts from; left as it is.
        prepared: the new tasks, on the base's model.
        journal: where recovery notes how far it is.
        progress: told (stage, steps done, steps in all).

    Raises:
        CompileError: training diverged, or the storage refused a write.
    """
    clock = prepared.clock.copy()
    transitions = _transitions(base, prepared)
    with clock.stage("align"):
        masks = _masks(base, prepared, transitions)
    with clock.stage("recover", journal):
        weights = _recover(prepared, masks, journal, progress)
    with clock.stage("pack"):
        added = _Addition.of(base, prepared, masks, weights, transitions)
    with clock.stage("write"):
        manifest = added.write(writer)
    with clock.stage("measure sparse"):
        bundle = Bundle.open(writer.root)
        scores = _measure(bundle, prepared, progress)
    report = _report(bundle, base, added, scores, clock, prepared.evenness)
    writer.add(REPORT, lambda file: file.write(report.dump()))
    writer.finish(manifest)
    return report


def train_dense(source: Source, data: Mapping[str, TaskData], journal: Journal, progress: Steps) -> None:
    """Train the own parameters of new tasks without a head on the dense model; the base stays.

    Raises:
        CompileError: the loss is no longer finite.
    """
    tasks = trained_tasks(source)
    for task in tasks:
        separate(source.models[task])
    train_own(source, data, tasks, None, source.task_file.training, "own-dense", journal, progress)


def _transitions(base: BaseBundle, prepared: Prepared) -> Transitions:
    """Between old and new tasks, the old ones first."""
    names = tuple(base.bundle.tasks)
    old = Transitions(names, np.array(base.bundle.manifest.transitions))
    new, trace = tuple(prepared.source.task_file.tasks), prepared.source.task_file.transitions
    if trace is None:
        return old.extended(new)
    return Transitions.from_trace((*names, *new), read_trace(trace, (*names, *new)))


def _masks(base: BaseBundle, prepared: Prepared, transitions: Transitions) -> Masks:
    """Everybody's keep masks, the new tasks' first."""
    task_file, paged = prepared.source.task_file, prepared.source.paged
    fixed = np.concatenate([base.keep[info.name] for info in paged])
    there = np.concatenate([base.shared[info.name] for info in paged])
    problem = alignment_problem(prepared, transitions.switch_rate())
    placed = place(problem, there)
    keep = np.split(np.concatenate([placed, fixed], axis=1), np.cumsum(problem.sizes)[:-1])
    names = (*task_file.tasks, *base.bundle.tasks)
    return Masks(names, dict(zip([info.name for info in paged], keep, strict=True)))


def _recover(prepared: Prepared, masks: Masks, journal: Journal, progress: Progress) -> TaskWeights:
    """The new tasks' values under their masks; where an old task keeps a block, it stays, or a private copy is made."""
    source = prepared.source
    spec, tasks = source.task_file.recover, trained_tasks(source)
    sparse = replace(source, models=copy.deepcopy(source.models))
    if spec.method == "finetune":
        lesson = Lesson(source, prepared.data, spec.distillation)
        each = spec.model_copy(update={"private_steps": max(1, spec.steps // len(source.models))})
        with lesson.placed(sparse):
            chosen = choose(lesson, sparse, masks, spec.private_blocks, each)
            told = partial(progress, "fine-tune")
            private, low_rank = train_private(lesson, sparse, masks, chosen, each, journal, told)
            return TaskWeights(sparse, private, low_rank=low_rank)
    told = partial(progress, "train own parameters")
    train_own(sparse, prepared.data, tasks, masks, source.task_file.training, "own-sparse", journal, told)
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
        packing = pack(stored, manifest.page_bytes, base.bundle.block_bytes)
        plan = BundlePlan(manifest.dtype, weights, keep, packing, entries, transitions, manifest.alignment)
        return cls(base, plan, reused)

    @property
    def source(self) -> Source:
        """The new tasks' modules."""
        return self.plan.weights.source

    def write(self, writer: BundleWriter) -> Manifest:
        """Write all files; the manifest last, which is returned."""
        bundle, packing = self.base.bundle, self.plan.packing
        for name in bundle.manifest.page_file_names():
            writer.link(name, bundle.path / name)
        ids = write_pages(writer, self.plan, first=len(bundle.manifest.page_files))
        old = TaskSubset(bundle, tuple(bundle.tasks))
        old.carry_over(writer, self.base.added(self.source))
        for name in map(tables_file, bundle.tasks):
            writer.link(name, check_file(bundle.path, name, bundle.entry(name)))
        signatures = bundle.pages.signatures.copy()
        for number, task in enumerate(self.plan.tasks):
            self._write_task(writer, number, task)
            signatures[self.reused_pages(number)] |= np.uint64(1) << np.uint64(len(bundle.tasks) + number)
        write_adapters(writer, self.plan.weights, self.plan.tasks)
        index = PageIndex(
            np.concatenate([bundle.pages.ids, ids]),
            np.concatenate([bundle.pages.layers, packing.layers]),
            np.concatenate([signatures, packing.signatures << np.uint64(len(bundle.tasks))]),
        )
        writer.add(page_index.FILE, lambda file: file.write(save(dict(index.arrays()))))
        manifest = self._manifest()
        writer.finish(manifest)
        return manifest

    def reused_locations(self, number: int) -> npt.NDArray[np.int64]:
        """Locations of the base's blocks that new task ``number`` takes."""
        return np.concatenate([self.base.locations[name][here[:, number]] for name, here in self.reused.items()])

    def reused_pages(self, number: int) -> npt.NDArray[np.int64]:
        """The pages in which they lie."""
        return np.unique(self.reused_locations(number) // self.base.bundle.manifest.blocks_per_page)

    def _write_task(self, writer: BundleWriter, number: int, task: TaskEntry) -> None:
        arrays: dict[str, npt.NDArray[np.int32]] = {}
        for position, info in enumerate(self.source.paged):
            shape = (info.grid.rows, info.grid.cols)
            table = BlockTable.build(
                self.plan.keep[info.name][:, number].reshape(shape), self._locations(position, number).reshape(shape)
            )
            arrays |= table.arrays(info.name)
        writer.add(tables_file(task.name), lambda file: file.write(save(arrays)))
        skipped = {f"{info.name}.weight" for info in self.source.paged}
        form = ParameterFormat.of(self.source.config, self.source.models, self.plan.dtype)
        private = {
            name: tensor
            for name, tensor in parameters(self.source.models[task.name]).items()
            if name not in skipped and not self.base.holds(name, tensor, form.dtype_of(name, tensor))
        }
        content = form.content(private)
        writer.add(private_file(task.name), lambda file: file.write(content))

    def _locations(self, position: int, number: int) -> npt.NDArray[np.int64]:
        """Where a new task finds each block of paged weight ``position``, [blocks]; −1 where it keeps none."""
        info, packing = self.source.paged[position], self.plan.packing
        own = packing.locations(position, info.grid.count, number)
        first = len(self.base.bundle.pages) * packing.blocks_per_page
        return np.where(self.reused[info.name][:, number], self.base.locations[info.name], own + first)

    def _manifest(self) -> Manifest:
        whole = self.base.bundle.manifest
        changes = {
            "generator": f"weightpager {weightpager.__version__}",
            "tasks": [*whole.tasks, *self.plan.tasks],
            "transitions": self.plan.transitions.matrix.tolist(),
            "page_files": [*whole.page_files, *page_file_counts(self.plan.packing)],
            "resident_reasons": {**self.source.resident, **whole.resident_reasons},
        }
        return whole.model_copy(update=changes)


def _private(weights: TaskWeights, info: PagedWeightInfo) -> npt.NDArray[np.bool_]:
    """Where tasks have values of their own, [blocks, tasks]."""
    found = np.zeros((info.grid.count, len(weights.source.models)), bool)
    for number, task in enumerate(weights.source.models):
        own = weights.private.get(task, {}).get(info.name)
        if own is not None:
            found[own.blocks, number] = True
    return found


def _measure(bundle: Bundle, prepared: Prepared, progress: Progress) -> list[TaskScore]:
    """The new tasks' scores; those of the old ones are what they were."""
    with Engine(bundle, EngineConfig()) as engine:
        found = measure_all(engine, prepared.data, progress)
    return [task_score(bundle, name, score, prepared.dense[name]) for name, score in found.items()]


def _report(
    bundle: Bundle, base: BaseBundle, added: _Addition, scores: list[TaskScore], clock: Clock, evenness: float
) -> CompileReport:
    old = read_report(base.bundle) if has_report(base.bundle) else None
    names = [task.name for task in added.plan.tasks]
    reused = np.unique(np.concatenate([added.reused_locations(number) for number in range(len(names))]))
    share = paged_share(bundle)
    return CompileReport(
        tasks=[*(old.tasks if old else []), *scores],
        mean_overlap=mean_overlap(overlap(bundle)),
        duality_gap=old.duality_gap if old else 0.0,
        page_bytes=bundle.page_bytes,
        page_fill=page_fill(bundle),
        over_read=over_read(bundle),
        seconds=clock.seconds,
        peak_memory=clock.peak_memory,
        threads=torch.get_num_threads(),
        controls=[],
        alignment=old.alignment if old else None,
        frontier=[],
        tied={**(old.tied if old else {}), **{name: list(others) for name, others in added.source.tied.items()}},
        evenness=min(old.evenness, evenness) if old else 0.0,
        paged_share=share.share,
        not_paged=dict(share.others),
        growth=Growth(
            tasks=names,
            reused_bytes=len(reused) * bundle.block_bytes,
            added_bytes=len(added.plan.packing.layers) * bundle.page_bytes,
            private_bytes=sum(bundle.entry(private_file(name)).bytes + adapter_bytes(bundle, name) for name in names),
        ),
    )

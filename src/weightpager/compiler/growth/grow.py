"""Adding tasks to a bundle: what is in it stays bit for bit, new tasks reuse its blocks and bring what they lack."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np

from weightpager.bundle import BundleWriter
from weightpager.bundle.format.names import REPORT, private_file
from weightpager.bundle.parts.adapter import adapter_bytes
from weightpager.bundle.report.compile_report import CompileReport, Growth, has_report, read_report
from weightpager.compiler.alignment.new_tasks import align_new_tasks
from weightpager.compiler.base_bundle import BaseBundle
from weightpager.compiler.growth.plan import GrowthPlan, plan_growth
from weightpager.compiler.growth.write import write_growth
from weightpager.compiler.measuring.measure import Written, measure_written
from weightpager.compiler.measuring.report import common_fields
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.recovery.finetune import Lesson
from weightpager.compiler.recovery.own_parameters import train_own
from weightpager.compiler.recovery.private_blocks import choose_private_blocks, train_private
from weightpager.compiler.resume.compile_run import CompileRun
from weightpager.compiler.selection.experts import check_left
from weightpager.compiler.selection.parts import parts, spread
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.training.masks import Masks


def grow(writer: BundleWriter, base: BaseBundle, prepared: Prepared, run: CompileRun) -> CompileReport:
    """Choose, recover, write and measure the new tasks.

    Args:
        writer: where the larger bundle goes.
        base: what it starts from; left as it is.
        prepared: the new tasks, on the base's model.
        run: in which recovery goes on.

    Raises:
        CompileError: training diverged, or the storage refused a write.
    """
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
    writer.finish(plan.manifest())  # once more: it lists the report, for which the bundle had to be read
    return report


def _masks(base: BaseBundle, prepared: Prepared) -> Masks:
    """The keep masks of all tasks, the new ones first."""
    task_file, paged = prepared.task_file, prepared.source.paged
    aligned = [
        (part, align_new_tasks(part.problem, part.gathered(base.shared)))
        for part in parts(prepared, prepared.source.transitions.switch_rate())
    ]
    new = spread(paged, aligned, len(task_file.tasks))
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
        private_bytes=sum(bundle.entry(private_file(name)).bytes + adapter_bytes(bundle, name) for name in names),
    )
    fields = common_fields(written, prepared, run)
    fields |= {"controls": [], "frontier": [], "growth": growth, "duality_gap": 0.0, "evenness": 0.0}
    fields["alignment"] = base.manifest.alignment
    if old is not None:
        fields |= {
            "tasks": [*old.tasks, *fields["tasks"]],
            "duality_gap": old.duality_gap,
            "tied": {**old.tied, **fields["tied"]},
            "evenness": min(old.evenness, prepared.evenness),
        }
    return CompileReport(**fields)

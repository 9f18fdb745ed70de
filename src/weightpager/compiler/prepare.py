"""From a task file to what the blocks are chosen by: load, train and measure the dense model, and calibrate."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from weightpager.bundle.addition import Addition
from weightpager.bundle.format.manifest import transitions_of
from weightpager.compiler.added import additions
from weightpager.compiler.base_bundle import BaseBundle
from weightpager.compiler.calibration import calibrate_tasks, wants_reorder
from weightpager.compiler.controls import compared, control_work
from weightpager.compiler.data import TaskData
from weightpager.compiler.data import check as check_data
from weightpager.compiler.data import load as load_splits
from weightpager.compiler.fit import fit_roughly
from weightpager.compiler.graph.export import check_droppable
from weightpager.compiler.measure import score_alone
from weightpager.compiler.memory_estimate import Bound, check_memory, choose_scratch
from weightpager.compiler.model.checkpoint import Scratch
from weightpager.compiler.model.dense_model import DenseModel, classes_brought
from weightpager.compiler.model.dense_model import load as load_dense
from weightpager.compiler.model.directory import check_known
from weightpager.compiler.model.half_layers import units_of
from weightpager.compiler.packing.write import image_shape
from weightpager.compiler.recovery.finetune import train
from weightpager.compiler.recovery.own_parameters import (
    check_rank,
    own_stage,
    train_own,
    untie_own_vectors,
)
from weightpager.compiler.recovery.recover import check_method, check_refit
from weightpager.compiler.resume.cache import Cache
from weightpager.compiler.resume.journal import CompileRun, Journal
from weightpager.compiler.resume.shared import Shared
from weightpager.compiler.selection.experts import check_experts
from weightpager.compiler.selection.prepared import Prepared, Trained
from weightpager.compiler.storage_estimate import check_storage
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.time_left import work_plan
from weightpager.compiler.training.early_stopping import with_steps
from weightpager.config import format_size
from weightpager.machine.memory import own_memory, read_memory, resident_memory
from weightpager.task_data.texts import Example

_log = logging.getLogger(__name__)

_OWN = "own-dense"
"""The stage in which added tasks are trained on the dense model."""


def prepare(
    task_file: TaskFile, run: CompileRun | None = None, base: BaseBundle | None = None, cache: Cache | None = None
) -> Prepared:
    """All stages before the first block is chosen; on the values of a base bundle if there is one.

    Raises:
        CompileError: the model or the data can't be used, or training diverged.
    """
    run = run or CompileRun()
    found = train_and_measure_dense(task_file, run, base, cache)
    return calibrate_tasks(found, run)


def train_and_measure_dense(
    task_file: TaskFile, run: CompileRun, base: BaseBundle | None = None, cache: Cache | None = None
) -> Trained:
    """Load, train where heads are missing, measure the dense model."""
    adds = base is not None
    shared = Shared.of(task_file, "" if base is None else base.identity(), cache or Cache.none())
    journal = shared.journal(run.journal)
    with run.stage("load"):
        _log.info("load %s …", task_file.model)
        before, own = resident_memory() or 0, own_memory() or 0
        source, data, added = _load(task_file, run, base)
        available = read_memory().usable_bytes
        if available is not None:
            available += max(0, (own_memory() or 0) - own)  # the model, unless it lies in files that are mapped
        bound = check_memory(source, available, reorders=not adds and wants_reorder(source), adds=adds)
        _tell(bound, before, run)
        check_storage(source, run.journal.folder, shared.cache, base, scratch=bound.on_disk)
        _check_units(source)
        run.expect(work_plan(source, data, adds=adds))
        if not adds and (work := control_work(source.task_file, compared(source.task_file, data))):
            _log.info(work)
    with run.stage("train"):
        stages = _train(source, data, journal, run, adds=adds)
        shared.training_ended(journal, stages)
    with run.stage("measure dense"):
        jobs = {name: partial(score_alone, source.alone(name), name, of) for name, of in data.items()}
        dense = shared.scores(source, jobs, run.workers_on(source), run.progress)
    return Trained(source, data, dense, shared, not adds, bound.calibration_bytes, added)


def _load(
    task_file: TaskFile, run: CompileRun, base: BaseBundle | None
) -> tuple[DenseModel, dict[str, TaskData], list[Addition]]:
    """The dense model, with as many steps and as few blocks as its data and a budget want; the data; what is added."""
    for name, spec in task_file.tasks.items():
        check_data(name, spec, classes_brought(spec))  # before the model, which takes long to load
    old = None if base is None else transitions_of(base.bundle.manifest)
    source = load_dense(task_file, partial(_place, run=run, adds=base is not None), old)
    source = source if base is None else base.adopt(source)
    if run.workers_on(source) is not run.workers:
        _log.warning("%s doesn't fit into memory and lies in files: its tasks are done in this process", source.path)
    check_method(source)
    check_experts(source)
    check_rank(source, task_file.recover.low_rank)
    data = _load_data(source)
    added = additions(source, data)
    check_refit(source, data)
    source = replace(source, task_file=with_steps(source.task_file, data))
    return fit_roughly(source, data, run), data, added


def _check_units(source: DenseModel) -> None:
    """See before anything is trained that the tasks' graphs can do without what may be dropped."""
    if dropped := {f"{name}.weight" for unit in units_of(source) for name in unit.weights}:
        kinds = [task.kind for task in source.task_file.tasks.values()]
        check_droppable(source.config, kinds, image_shape(source), dropped)


def _train(
    source: DenseModel, data: Mapping[str, TaskData], journal: Journal, run: CompileRun, *, adds: bool
) -> list[str]:
    """Train what is missing of the dense model; the journal's stages in which that was done."""
    told = partial(run.progress, "train the dense model")
    if adds:
        tasks = source.task_file.trained_tasks
        for task in tasks:
            untie_own_vectors(source, task, pooler=True)
        train_own(source, data, None, _OWN, journal, told, run.workers_on(source))
        return [own_stage(_OWN, task) for task in tasks]
    return ["train"] if train(source, data, told, journal) else []


def _place(source: DenseModel, run: CompileRun, adds: bool) -> Scratch:
    folder = None if adds else run.journal.folder
    return choose_scratch(source, folder, read_memory().usable_bytes, reorders=not adds and wants_reorder(source))


def _tell(bound: Bound, before: int, run: CompileRun) -> None:
    """State what the process will hold, of which ``before`` bytes were there before the model."""
    run.memory_bound.update({stage: before + size for stage, size in bound.stages.items()})
    stage, size = bound.most
    where = f"; up to {format_size(bound.on_disk)} lie beside the bundle while it is made" if bound.on_disk else ""
    _log.info("memory: at most about %s (%s)%s", format_size(before + size), stage, where)


def _load_data(source: DenseModel) -> dict[str, TaskData]:
    task_file = source.task_file
    data = {}
    for name, spec in task_file.tasks.items():
        if not spec.splits:
            continue
        length = task_file.max_length_of(name)
        data[name] = load_splits(name, spec, source.reads, source.classes(name), length, source.picture_reader)
        if not spec.takes_images:
            _check_words(source, name, data[name])
    return data


def _check_words(source: DenseModel, name: str, data: TaskData) -> None:
    """Refuse data with words that only the tokenizer knows."""
    examples = (*data.train, *data.eval, *(data.validation or ()))
    largest = max((max(x.tokens) for x in examples if isinstance(x, Example) and x.tokens), default=0)
    words = source.models[name].get_input_embeddings().weight.shape[0]
    check_known(source.tokenizer, largest, words, f"tasks.{name}")

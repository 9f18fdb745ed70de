"""From a task file to what the blocks are chosen by: load, train, measure the dense model, calibrate, reorder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from weightpager.bundle.format.permutations import NOTHING_MOVED, Permutations
from weightpager.compiler import data as task_data
from weightpager.compiler.base_bundle import BaseBundle
from weightpager.compiler.data.batch import Batch
from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.estimates.memory import Bound, check_memory, place
from weightpager.compiler.estimates.storage import check_storage
from weightpager.compiler.estimates.work_plan import work_plan
from weightpager.compiler.fit import roughly_fitted
from weightpager.compiler.measuring.controls import compared, cost
from weightpager.compiler.measuring.torch_score import score_alone
from weightpager.compiler.model import dense_model as dense_source
from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.model.directory import check_known
from weightpager.compiler.model.scratch import Scratch
from weightpager.compiler.recovery.low_rank import check_rank
from weightpager.compiler.recovery.own_parameters import own_stage, separate, train_own
from weightpager.compiler.recovery.recover import check_method
from weightpager.compiler.recovery.train import train
from weightpager.compiler.reorder.apply import apply, permuted_calibration, reorder
from weightpager.compiler.resume.cache import Cache
from weightpager.compiler.resume.compile_run import CompileRun
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.resume.shared import COPIES, Shared
from weightpager.compiler.resume.workers import Workers
from weightpager.compiler.selection.experts import check_experts, expert_saliency, keeps_whole
from weightpager.compiler.selection.floor_trial import choose_evenness
from weightpager.compiler.selection.prepared import Prepared, SaliencyOfTasks, Trained
from weightpager.compiler.selection.saliency import Calibration, FloatArray, block_saliency, calibrate
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.training.steps import with_steps
from weightpager.config import format_size
from weightpager.machine.memory import read_memory
from weightpager.machine.process_memory import resident_memory
from weightpager.progress import Progress, Steps, silent
from weightpager.task_data.texts import Example

_log = logging.getLogger(__name__)

_LATER = 256 << 20
"""Bytes of packages that are imported, and of threads that are started, after a model is loaded."""

_OWN = "own-dense"
"""The stage in which added tasks are trained on the dense model."""

_PROBE = 4
"""Texts or windows per task that the reordered model has to answer as before."""


def prepare(
    task_file: TaskFile, run: CompileRun | None = None, base: BaseBundle | None = None, cache: Cache | None = None
) -> Prepared:
    """All stages before the first block is chosen; on the values of a base bundle if there is one.

    Raises:
        CompileError: the model or the data can't be used, or training diverged.
    """
    run = run or CompileRun()
    found = trained(task_file, run, base, cache)
    return calibrated(found, run)


def trained(
    task_file: TaskFile, run: CompileRun, base: BaseBundle | None = None, cache: Cache | None = None
) -> Trained:
    """Load, train where heads are missing, measure the dense model.

    Raises:
        CompileError: as `prepare`.
    """
    shared = Shared.of(task_file, "" if base is None else base.identity(), cache or Cache.none())
    journal = shared.journal(run.journal)
    with run.stage("load"):
        before = resident_memory() or 0
        source = dense_source.load(task_file, partial(_place, run=run, adds=base is not None))
        source = source if base is None else base.adopt(source)
        _tell_where(source, run)
        check_method(source)
        check_experts(source)
        check_rank(source, task_file.recover.low_rank)
        data = _load_data(source)
        source = replace(source, task_file=with_steps(source.task_file, data))
        source = roughly_fitted(source, data, run)
        bound = check_memory(source, adds=base is not None, moves=base is None and _moves(source))
        _tell(bound, before, run)
        check_storage(source, run.journal.folder, shared.cache, base, scratch=bound.on_disk)
        run.expect(work_plan(source, data, adds=base is not None))
        if base is None and (taken := cost(source.task_file, compared(source.task_file, data))):
            _log.info(taken)
    with run.stage("train"):
        told = partial(run.progress, "train the dense model")
        if base is None:
            train(source, data, told, journal)
        else:
            _train_added(source, data, journal, told, run.workers_on(source))
        own_stages = [own_stage(_OWN, task) for task in source.task_file.trained_tasks]
        shared.training_ended(journal, ["train"] if base is None else own_stages)
    with run.stage("measure dense"):
        jobs = {name: partial(score_alone, source.alone(name), name, of) for name, of in data.items()}
        dense = shared.scores(source, jobs, run.workers_on(source), run.progress)
    return Trained(source, data, dense, shared, moves=base is None, sums=bound.sums)


def _place(source: Source, run: CompileRun, adds: bool) -> Scratch:
    folder = None if adds else run.journal.folder
    return place(source, folder, read_memory().usable_bytes, moves=not adds and _moves(source))


def _tell_where(source: Source, run: CompileRun) -> None:
    """Say so where workers aren't asked."""
    if run.workers_on(source) is not run.workers:
        _log.warning("%s doesn't fit into memory and lies in files: its tasks are done in this process", source.path)


def _tell(bound: Bound, before: int, run: CompileRun) -> None:
    """State what the process will hold, of which ``before`` bytes were there before the model."""
    run.memory_bound.update({stage: before + _LATER + size for stage, size in bound.stages.items()})
    stage, size = bound.most
    where = f"; up to {format_size(bound.on_disk)} lie beside the bundle while it is made" if bound.on_disk else ""
    _log.info("memory: at most about %s (%s)%s", format_size(before + _LATER + size), stage, where)


def calibrated(found: Trained, run: CompileRun) -> Prepared:
    """Measure saliency, and reorder the modules in place if the task file says so.

    The journal keeps both: values that were trained in one order are worth nothing in another, and a second calibration
    may differ in its last digits.

    Raises:
        CompileError: a loss or an input isn't finite.
    """
    source = found.source
    with run.stage("calibrate"):
        entry = run.journal.read("calibrate", partial(_has_all, source=source))
    if entry is not None:
        saliency, permutations = _restored(entry[1])
        apply(source.models, permutations)
    elif found.moves and _moves(source):
        saliency, permutations = _reorder(found, run)
    elif keeps_whole(source):
        permutations = NOTHING_MOVED
        with run.stage("calibrate"):
            saliency = _expert_saliency(found, run)
    else:
        permutations = NOTHING_MOVED
        with run.stage("calibrate"):
            by_task = {name: block_saliency(source, sums.items()) for name, sums in _calibrations(found, run)}
        saliency = {name: by_task[name] for name in found.data}
    run.journal.write("calibrate", 0, _tensors(saliency, permutations))
    prepared = Prepared(source, found.data, found.dense, saliency, permutations)
    with run.stage("floors"):
        return replace(prepared, evenness=_evenness(prepared, run.progress, run.journal))


def _expert_saliency(found: Trained, run: CompileRun) -> SaliencyOfTasks:
    source, saliency = found.source, SaliencyOfTasks()
    jobs = {name: partial(_expert_job, source.alone(name), name, batches) for name, batches in _calibration_data(found)}
    done = run.workers_on(source).each(jobs, lambda _task: silent, COPIES)
    for number, one in enumerate(done, 1):
        saliency[one.key] = one.value
        run.progress("calibrate", number, len(jobs))
    return {name: saliency[name] for name in found.data}


def _expert_job(source: Source, task: str, batches: Sequence[Batch], _told: Steps) -> dict[str, FloatArray]:
    return expert_saliency(source, task, batches)


def _evenness(prepared: Prepared, progress: Progress, journal: Journal) -> float:
    if keeps_whole(prepared.source):
        return 0.0  # there are no floors
    entry = journal.read("floors", lambda tensors: "evenness" in tensors)
    if entry is not None:
        return entry[1]["evenness"].item()
    evenness = choose_evenness(prepared, progress)
    journal.write("floors", 0, {"evenness": torch.tensor(evenness, dtype=torch.float64)})
    return evenness


def _moves(source: Source) -> bool:
    """Whether the model is reordered; one whose tasks have weights of their own, or keep whole experts, isn't."""
    return source.task_file.reorder and not source.versions and not keeps_whole(source)


def _load_data(source: Source) -> dict[str, TaskData]:
    task_file = source.task_file
    data = {}
    for name, spec in task_file.tasks.items():
        length = task_file.max_length_of(name)
        data[name] = task_data.load(name, spec, source.reads, source.classes(name), length)
        if not spec.takes_images:
            _check_words(source, name, data[name])
    return data


def _check_words(source: Source, name: str, data: TaskData) -> None:
    """Refuse data with words that only the tokenizer knows."""
    examples = (*data.train, *data.eval, *(data.validation or ()))
    largest = max((max(x.tokens) for x in examples if isinstance(x, Example) and x.tokens), default=0)
    words = source.models[name].get_input_embeddings().weight.shape[0]
    check_known(source.tokenizer, largest, words, f"tasks.{name}")


def _train_added(
    source: Source, data: Mapping[str, TaskData], journal: Journal, progress: Steps, workers: Workers
) -> None:
    """Train the own parameters of new tasks without a head on the dense model; the base stays."""
    tasks = source.task_file.trained_tasks
    for task in tasks:
        separate(source.models[task], pooler=True)
    train_own(source, data, None, _OWN, journal, progress, workers)


def _calibrations(found: Trained, run: CompileRun) -> Iterator[tuple[str, Calibration]]:
    """One task's at a time, in any order: each takes as much memory as the paged weights."""
    source = found.source
    jobs = {
        name: partial(_calibration_job, source.alone(name), name, batches, found.sums)
        for name, batches in _calibration_data(found)
    }
    for number, one in enumerate(found.shared.calibrations(source, jobs, run.workers_on(source)), 1):
        yield one
        run.progress("calibrate", number, len(jobs))
    found.shared.calibrated()


def _calibration_job(source: Source, task: str, batches: Sequence[Batch], room: int | None, told: Steps) -> Calibration:
    return calibrate(source, task, batches, told, room)


def _calibration_data(found: Trained) -> Iterator[tuple[str, Sequence[Batch]]]:
    spec = found.source.task_file.calibration
    for name, of_task in found.data.items():
        yield name, of_task.calibration(spec.items, spec.batch)


def _reorder(found: Trained, run: CompileRun) -> tuple[SaliencyOfTasks, Permutations]:
    """Reorder the source; the saliency of the blocks that it then has."""
    source, data = found.source, found.data
    with run.stage("calibrate"):
        by_task = dict(_calibrations(found, run))
        calibrations = {name: by_task.pop(name) for name in data}
    with run.stage("reorder"):
        probes = {name: of_task.calibration(_PROBE, _PROBE)[0] for name, of_task in data.items()}
        densities = {name: 1.0 - source.task_file.sparsity_of(name) for name in data}
        permutations = reorder(source, calibrations, probes, densities)
        saliency: SaliencyOfTasks = {}
        for name in data:  # each is given back as soon as it has been used
            moved = permuted_calibration(permutations, calibrations.pop(name))
            saliency[name] = block_saliency(source, moved)
    return saliency, permutations


_SALIENCY, _ORDER = "saliency/", "order/"


def _tensors(saliency: SaliencyOfTasks, permutations: Permutations) -> dict[str, Tensor]:
    values = {
        f"{_SALIENCY}{task}/{weight}": torch.from_numpy(values)
        for task, of_task in saliency.items()
        for weight, values in of_task.items()
    }
    return values | {_ORDER + name: torch.from_numpy(order) for name, order in permutations.arrays().items()}


def _has_all(tensors: Mapping[str, Tensor], *, source: Source) -> bool:
    """Whether a journal's entry has the saliency of every weight to every task."""
    return all(f"{_SALIENCY}{task}/{info.name}" in tensors for task in source.models for info in source.paged)


def _restored(tensors: Mapping[str, Tensor]) -> tuple[SaliencyOfTasks, Permutations]:
    saliency: SaliencyOfTasks = {}
    for name, tensor in tensors.items():
        if name.startswith(_SALIENCY):
            task, _, weight = name.removeprefix(_SALIENCY).partition("/")
            saliency.setdefault(task, {})[weight] = tensor.numpy()
    orders = {name.removeprefix(_ORDER): t.numpy() for name, t in tensors.items() if name.startswith(_ORDER)}
    return saliency, Permutations.parse(orders)

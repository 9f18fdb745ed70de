"""By what blocks are chosen: their saliency, on modules that are reordered where that helps, and floors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from weightpager.bundle.format.placement import NOTHING_MOVED, Permutations
from weightpager.compiler.data import Batch
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.half_layers import units_of
from weightpager.compiler.reorder.apply import apply, permuted_calibration, reorder
from weightpager.compiler.resume.journal import CompileRun, Journal
from weightpager.compiler.resume.shared import COPIES
from weightpager.compiler.selection.block_choice import choose_evenness
from weightpager.compiler.selection.experts import expert_saliency, keeps_whole_experts
from weightpager.compiler.selection.half_layers import HALVES, half_layer_saliency, half_saliency, trial_rows
from weightpager.compiler.selection.prepared import Prepared, SaliencyOfTasks, Trained
from weightpager.compiler.selection.saliency import Calibration, FloatArray, block_saliency, calibrate
from weightpager.progress import Progress, silent

_PROBE = 4
"""Texts or windows per task that the reordered model has to answer as before."""


def calibrate_tasks(found: Trained, run: CompileRun) -> Prepared:
    """Measure saliency, and reorder the modules in place if the task file says so.

    The journal keeps both: values that were trained in one order are worth nothing in another, and a second calibration
    may differ in its last digits.
    """
    source = found.source
    with run.stage("calibrate"):
        weights = [
            *(info.name for info in source.paged),
            *([HALVES] if source.task_file.units.share is not None else []),
        ]
        names = {f"{_SALIENCY}{task}/{name}" for task in source.models for name in weights}
        reached = run.journal.read("calibrate", lambda tensors: names <= tensors.keys())
    if reached is not None:
        saliency, permutations = _restored(reached.tensors)
        apply(source.models, permutations)
    elif found.may_reorder and wants_reorder(source):
        saliency, permutations = _reorder(found, run)
    else:
        permutations = NOTHING_MOVED
        with run.stage("calibrate"):
            saliency = _saliency_of(source)(found, run)
    for task in source.models.keys() - found.data.keys():  # they keep all blocks
        saliency[task] = {info.name: np.ones(info.grid.count) for info in source.paged}
    if reached is None and source.task_file.units.share is not None:
        with run.stage("calibrate"):
            for task, of_task in _whole_saliency(half_layer_saliency, found, run).items():
                saliency[task][HALVES] = half_saliency(of_task, units_of(source))
    run.journal.write("calibrate", 0, _tensors(saliency, permutations))
    prepared = Prepared(source, found.data, found.dense, saliency, permutations, added=found.added)
    with run.stage("floors"):
        return replace(prepared, evenness=_evenness(prepared, run.progress, run.journal))


def _saliency_of(source: DenseModel) -> Callable[[Trained, CompileRun], SaliencyOfTasks]:
    """What finds the saliency of what tasks keep or drop."""
    if keeps_whole_experts(source):
        return partial(_whole_saliency, expert_saliency)
    return partial(_whole_saliency, half_layer_saliency) if source.task_file.units.whole else _block_saliency


def _whole_saliency(of_task: Callable[..., dict[str, FloatArray]], found: Trained, run: CompileRun) -> SaliencyOfTasks:
    source, saliency = found.source, SaliencyOfTasks()
    jobs = {name: partial(of_task, source.alone(name), name, batches) for name, batches in _calibration_data(found)}
    done = run.workers_on(source).each(jobs, lambda _task: silent, COPIES)
    for number, one in enumerate(done, 1):
        saliency[one.key] = one.value
        run.progress("calibrate", number, len(jobs))
    return {name: saliency[name] for name in found.data}


def _block_saliency(found: Trained, run: CompileRun) -> SaliencyOfTasks:
    by_task = {name: block_saliency(found.source, sums.items()) for name, sums in _calibrations(found, run)}
    return {name: by_task[name] for name in found.data}


def _evenness(prepared: Prepared, progress: Progress, journal: Journal) -> float:
    if not prepared.data or keeps_whole_experts(prepared.source) or prepared.task_file.units.whole:
        return 0.0  # there are no floors
    reached = journal.read("floors", lambda tensors: "evenness" in tensors)
    if reached is not None:
        return reached.tensors["evenness"].item()
    evenness = choose_evenness(prepared, progress)
    journal.write("floors", 0, {"evenness": torch.tensor(evenness, dtype=torch.float64)})
    return evenness


def wants_reorder(source: DenseModel) -> bool:
    """Whether the model is reordered; one whose tasks have weights of their own, or keep more than blocks, isn't."""
    if source.versions or not source.task_file.has_data or keeps_whole_experts(source):
        return False
    return source.task_file.reorder and not source.task_file.units.whole


def _calibrations(found: Trained, run: CompileRun) -> Iterator[tuple[str, Calibration]]:
    """One task's at a time, in any order: each takes as much memory as the paged weights."""
    source = found.source
    jobs = {
        name: partial(calibrate, source.alone(name), name, batches, found.calibration_bytes)
        for name, batches in _calibration_data(found)
    }
    for number, one in enumerate(found.shared.calibrations(source, jobs, run.workers_on(source)), 1):
        yield one
        run.progress("calibrate", number, len(jobs))


def _calibration_data(found: Trained) -> Iterator[tuple[str, Sequence[Batch]]]:
    file = found.source.task_file
    spec, ranks = file.calibration, file.units.whole and file.keep is not None
    for name, of_task in found.data.items():
        yield name, trial_rows(of_task) if ranks else of_task.calibration(spec.items, spec.batch, spec.seed)


def _reorder(found: Trained, run: CompileRun) -> tuple[SaliencyOfTasks, Permutations]:
    """Reorder the source; the saliency of the blocks that it then has."""
    source, data = found.source, found.data
    with run.stage("calibrate"):
        by_task = dict(_calibrations(found, run))
        calibrations = {name: by_task.pop(name) for name in data}
    with run.stage("reorder", one_step=True):
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


def _restored(tensors: Mapping[str, Tensor]) -> tuple[SaliencyOfTasks, Permutations]:
    saliency: SaliencyOfTasks = {}
    for name, tensor in tensors.items():
        if name.startswith(_SALIENCY):
            task, _, weight = name.removeprefix(_SALIENCY).partition("/")
            saliency.setdefault(task, {})[weight] = tensor.numpy()
    orders = {name.removeprefix(_ORDER): t.numpy() for name, t in tensors.items() if name.startswith(_ORDER)}
    return saliency, Permutations.parse(orders)

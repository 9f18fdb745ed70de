"""From a task file to what the blocks are chosen by: load, train, measure the dense model, calibrate, reorder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch

from weightpager.answers.evaluate import Score, evaluate
from weightpager.bundle.format.permutations import NOTHING_MOVED, Permutations
from weightpager.compiler import data as task_data
from weightpager.compiler.base_bundle import BaseBundle
from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.data.texts import Example
from weightpager.compiler.estimates.memory import check_saliency, check_training
from weightpager.compiler.estimates.storage import check_storage
from weightpager.compiler.estimates.time_left import expect
from weightpager.compiler.estimates.work_plan import work_plan
from weightpager.compiler.grow import train_dense
from weightpager.compiler.measuring.controls import compared, cost
from weightpager.compiler.model import dense_model as dense_source
from weightpager.compiler.model.checkpoint import check_known
from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.model.device import training_device
from weightpager.compiler.recovery.low_rank import check_rank
from weightpager.compiler.recovery.steps import with_steps
from weightpager.compiler.recovery.train import train
from weightpager.compiler.reorder.permute import apply, permuted_calibration, reorder
from weightpager.compiler.resume.cache import Cache
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.resume.shared import Shared
from weightpager.compiler.resume.stage_times import Clock
from weightpager.compiler.selection.calibrate import Calibration, calibrate
from weightpager.compiler.selection.floor_trial import choose_evenness
from weightpager.compiler.selection.prepared import Prepared, SaliencyOfTasks, Trained
from weightpager.compiler.selection.saliency import block_saliency
from weightpager.compiler.task_file.file import TaskFile
from weightpager.machine.memory import read_memory
from weightpager.progress import Progress, silent

_log = logging.getLogger(__name__)

_PROBE = 4
"""Texts or windows per task that the reordered model has to answer as before."""


def prepare(
    task_file: TaskFile,
    progress: Progress = silent,
    journal: Journal | None = None,
    base: BaseBundle | None = None,
    cache: Cache | None = None,
) -> Prepared:
    """All stages before the first block is chosen; on the values of a base bundle if there is one.

    Raises:
        CompileError: the model or the data can't be used, or training diverged.
    """
    journal, shared = journal or Journal.none(), Shared.of(task_file, _identity(base), cache or Cache.none())
    found = trained(task_file, progress, journal, base, shared)
    return calibrated(found, progress, journal, shared, may_move=base is None)


def trained(
    task_file: TaskFile,
    progress: Progress,
    journal: Journal,
    base: BaseBundle | None = None,
    shared: Shared | None = None,
) -> Trained:
    """Load, train where heads are missing, measure the dense model.

    Raises:
        CompileError: as `prepare`.
    """
    clock, shared = Clock(), shared or Shared.of(task_file, _identity(base), Cache.none())
    kept = shared.journal(journal)
    with clock.stage("load"):
        source = dense_source.load(task_file)
        source = source if base is None else base.adopt(source)
        check_rank(source, task_file.recover.low_rank)
        data = _load_data(source)
        source = replace(source, task_file=with_steps(source.task_file, data))
        _check_memory(source, adds=base is not None)
        check_storage(source, journal.folder, shared.cache, base)
        expect(progress, work_plan(source, data, adds=base is not None))
        if base is None and (taken := cost(source.task_file, compared(source.task_file, data))):
            _log.info(taken)
    with clock.stage("train", kept):
        told = partial(progress, "train the dense model")
        if base is None:
            train(source, data, told, kept)
        else:
            train_dense(source, data, kept, told)
        shared.training_ended(kept, "train" if base is None else "own-dense")
    with clock.stage("measure dense"):
        dense = shared.scores(source, lambda: {name: _dense_score(source, data[name], name, progress) for name in data})
    return Trained(source, data, dense, clock)


def calibrated(
    found: Trained, progress: Progress, journal: Journal, shared: Shared | None = None, *, may_move: bool = True
) -> Prepared:
    """Measure saliency, and reorder the modules in place if the task file says so.

    The journal keeps both: values that were trained in one order are worth nothing in another, and a second calibration
    may differ in its last digits.

    Args:
        found: the dense model.
        progress: told (stage, steps done, steps in all).
        journal: where both are kept.
        shared: where calibrations may lie; None has none.
        may_move: False where the order is given.

    Raises:
        CompileError: a loss or an input isn't finite.
    """
    source, data, clock = found.source, found.data, found.clock.copy()
    calibrations = partial(_calibrations, source, data, progress, shared)
    with clock.stage("calibrate", journal):
        entry = journal.read("calibrate", partial(_has_all, source=source))
    if entry is not None:
        saliency, permutations = _restored(entry[1])
        apply(source.models, permutations)
    elif may_move and _moves(source):
        saliency, permutations = _reorder(source, data, clock, calibrations())
    else:
        permutations, saliency = NOTHING_MOVED, {}
        with clock.stage("calibrate"):
            for name, calibration in calibrations():
                saliency[name] = block_saliency(source, name, calibration)
    journal.write("calibrate", 0, _tensors(saliency, permutations))
    prepared = Prepared(source, data, found.dense, saliency, clock, permutations)
    with clock.stage("floors", journal):
        return replace(prepared, evenness=_evenness(prepared, progress, journal))


def _identity(base: BaseBundle | None) -> str:
    return "" if base is None else base.identity()


def _evenness(prepared: Prepared, progress: Progress, journal: Journal) -> float:
    entry = journal.read("floors", lambda tensors: "evenness" in tensors)
    if entry is not None:
        return entry[1]["evenness"].item()
    found = choose_evenness(prepared, progress)
    journal.write("floors", 0, {"evenness": torch.tensor(found, dtype=torch.float64)})
    return found


def _moves(source: Source) -> bool:
    """Whether the model is reordered; one whose tasks have weights of their own never is."""
    return source.task_file.reorder and not source.versions


def _check_memory(source: Source, *, adds: bool) -> None:
    available = read_memory().usable_bytes
    if training_device().type == "cpu":
        check_training(source, available, adds=adds)
    check_saliency(source, available, moves=not adds and _moves(source))


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


def _dense_score(source: Source, data: TaskData, name: str, progress: Progress) -> Score:
    return evaluate(source.models[name], data.held_out(), data.kind, partial(progress, f"measure dense {name}"))


def _calibrations(
    source: Source, data: Mapping[str, TaskData], progress: Progress, shared: Shared | None = None
) -> Iterator[tuple[str, Calibration]]:
    """One task's at a time: each takes as much memory as the paged weights."""
    spec = source.task_file.calibration
    for number, (name, of_task) in enumerate(data.items()):
        measure = partial(calibrate, source, name, of_task.calibration(spec.items, spec.batch))
        if shared is None:
            yield name, measure()
        else:
            values = shared.calibration(source, name, lambda measure=measure: measure().values)  # type: ignore[misc]
            yield name, Calibration(source.task_file.saliency, values)
        progress("calibrate", number + 1, len(data))
    if shared is not None:
        shared.calibrated()


def _reorder(
    source: Source, data: Mapping[str, TaskData], clock: Clock, found: Iterator[tuple[str, Calibration]]
) -> tuple[SaliencyOfTasks, Permutations]:
    """Reorder the source; the saliency of the blocks that it then has."""
    with clock.stage("calibrate"):
        calibrations = dict(found)
    with clock.stage("reorder"):
        probes = {name: of_task.calibration(_PROBE, _PROBE)[0] for name, of_task in data.items()}
        densities = {name: 1.0 - source.task_file.sparsity_of(name) for name in data}
        permutations = reorder(source, calibrations, probes, densities)
        saliency: SaliencyOfTasks = {}
        for name in data:  # each is given back as soon as it has been used
            moved = permuted_calibration(permutations, calibrations.pop(name))
            saliency[name] = block_saliency(source, name, moved)
    return saliency, permutations


_SALIENCY, _ORDER = "saliency/", "order/"


def _tensors(saliency: SaliencyOfTasks, permutations: Permutations) -> dict[str, torch.Tensor]:
    """As `_restored` reads them."""
    values = {
        f"{_SALIENCY}{task}/{weight}": torch.from_numpy(values)
        for task, of_task in saliency.items()
        for weight, values in of_task.items()
    }
    return values | {_ORDER + name: torch.from_numpy(order) for name, order in permutations.arrays().items()}


def _has_all(tensors: Mapping[str, torch.Tensor], *, source: Source) -> bool:
    """Whether a journal's entry has the saliency of every weight to every task."""
    return all(f"{_SALIENCY}{task}/{info.name}" in tensors for task in source.models for info in source.paged)


def _restored(tensors: Mapping[str, torch.Tensor]) -> tuple[SaliencyOfTasks, Permutations]:
    saliency: SaliencyOfTasks = {}
    for name, tensor in tensors.items():
        if name.startswith(_SALIENCY):
            task, _, weight = name.removeprefix(_SALIENCY).partition("/")
            saliency.setdefault(task, {})[weight] = tensor.numpy()
    orders = {name.removeprefix(_ORDER): t.numpy() for name, t in tensors.items() if name.startswith(_ORDER)}
    return saliency, Permutations.parse(orders)

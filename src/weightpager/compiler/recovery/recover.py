"""Recovery: from the dense model and the masks to the values that the bundle holds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from weightpager.compiler.data import PIXELS, TaskData
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.half_layers import units_of
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.recovery.closed_form import overlaid, refit, tokens_wanted
from weightpager.compiler.recovery.finetune import Lesson, finetune, leaves_tower, resumes
from weightpager.compiler.recovery.layer_stream import check_layers
from weightpager.compiler.recovery.private_blocks import choose_private_blocks, train_private
from weightpager.compiler.recovery.rounding import is_coarse
from weightpager.compiler.resume.journal import LOCAL, Journal, Workers
from weightpager.compiler.training.masks import Masks
from weightpager.errors import CompileError
from weightpager.nn.experts import mixtures
from weightpager.page_dtype import ENCODINGS, Encoding
from weightpager.progress import Progress


def recover(
    dense: DenseModel,
    data: Mapping[str, TaskData],
    masks: Masks,
    journal: Journal,
    progress: Progress,
    workers: Workers = LOCAL,
) -> TaskWeights:
    """Win back accuracy that dropping blocks cost, as the task file's ``recover`` says. The dense model stays.

    Raises:
        CompileError: training diverged, or the model's layers can't be refitted one by one.
    """
    spec = dense.task_file.recover
    if spec.method == "none":
        return TaskWeights(dense)
    trains = spec.method == "finetune"
    sparse = replace(dense, models=copy.deepcopy(dense.models)) if trains else overlaid(dense)
    lesson = Lesson(dense, sparse, masks, data, spec)
    if spec.refits and (leaves_tower(dense) or not resumes(lesson, journal)):
        calibration, tokens = dense.task_file.calibration, tokens_wanted(dense)
        batches = {
            name: of_task.calibration(calibration.items, calibration.batch, calibration.seed, tokens)
            for name, of_task in data.items()
        }
        refit(dense, sparse, masks, batches, journal, partial(progress, "refit"), encodings=_encodings(dense))
    if not trains:
        return TaskWeights(sparse)
    finetune(lesson, journal, partial(progress, "fine-tune"))
    if not spec.trains_alone:
        return TaskWeights(sparse)
    with lesson.placed():
        return train_private(
            lesson, choose_private_blocks(lesson), journal, partial(progress, "private blocks"), workers
        )


def _encodings(dense: DenseModel) -> Mapping[range, Encoding]:
    """What the values of a stretch of layers are rounded to while they are refitted: not where training goes on."""
    file = dense.task_file
    if not is_coarse(file.dtype):
        return {}
    ends = [
        part
        for part in dense.stretches
        if file.recover.method != "finetune" or (leaves_tower(dense) and part.start == 0)
    ]
    return dict.fromkeys(ends, ENCODINGS[file.dtype])


def check_refit(source: DenseModel, data: Mapping[str, TaskData]) -> None:
    """See before anything is trained that layers can be refitted one by one, if the task file says so."""
    if source.task_file.recover.refits:
        task, of_task = next(iter(data.items()))
        batch = of_task.calibration(1, 1)[0]
        for part in source.stretches:
            if PIXELS in batch.inputs or part.start or source.pictures is None:
                check_layers(source.models[task], batch, len(part), part.start)


def check_method(source: DenseModel) -> None:
    """See before anything is trained that the model can be recovered as its task file says."""
    units = source.task_file.units.unit
    if units != "block" and (not units_of(source) or any(map(mixtures, source.models.values()))):
        raise CompileError(
            f"units: expected block, found {units}: {source.path} has experts, or no numbered layers with an attention"
        )
    if source.task_file.recover.refits and any(map(mixtures, source.models.values())):
        raise CompileError(
            f"recover: expected none, or finetune that starts from dense, for the experts of {source.path}, found "
            "closed-form: it refits layers that all tokens pass, and an expert sees few"
        )

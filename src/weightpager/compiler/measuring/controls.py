"""Controls: simpler ways to serve the same tasks, measured on the same data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from weightpager.answers.score import Score
from weightpager.bundle.report.compile_report import DENSE, MASK
from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.measuring.control_plan import CHOICE, control_names, measuring, validation_data
from weightpager.compiler.measuring.quantise import QUANTISATIONS, Quantisation
from weightpager.compiler.measuring.report import Control
from weightpager.compiler.measuring.torch_score import score_alone, torch_score
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.stored_blocks import StoredBlocks
from weightpager.compiler.recovery.low_rank import dense_part
from weightpager.compiler.recovery.recover import recover
from weightpager.compiler.recovery.rounding import stored
from weightpager.compiler.recovery.train import dense_error, groups
from weightpager.compiler.recovery.training_loop import Training, alternating_batches
from weightpager.compiler.resume.compile_run import CompileRun
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.resume.shared import COPIES
from weightpager.compiler.resume.workers import Job
from weightpager.compiler.selection.block_choice import choose_blocks
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.training.device import placed, training_device
from weightpager.compiler.training.early_stopping import validation_of
from weightpager.compiler.training.masks import Masks, module_name
from weightpager.compiler.training.replaced import Replaced
from weightpager.nn import is_plain_embedding
from weightpager.page_dtype import block_bytes
from weightpager.progress import StepProgress

Values = Callable[[DenseModel, str, PagedWeightInfo], Tensor]
"""(model, task, paged weight) → the values ``[out_features, in_features]`` that a control would hold."""

Measured = Mapping[str, Mapping[str, Score]]
"""Control → task → what it reached."""

_STAGE = "dense"
"""The journal's stage in which the dense model is trained further."""


def measure_controls(prepared: Prepared, run: CompileRun) -> list[Control]:
    """All controls that are `compared`; where recovery trains, each of them is trained as long.

    Raises:
        CompileError: training diverged.
    """
    names = control_names(prepared.task_file, prepared.data)
    controls = _dense_controls(prepared, run) if names else []
    if MASK in names:
        controls.append(_shared_mask(prepared, run))
    return controls


def _dense_controls(prepared: Prepared, run: CompileRun) -> list[Control]:
    """The dense model, if it is trained on, and with its paged weights quantised: one copy for all tasks.

    Who quantises a model has its embedding tables in int8.
    """
    dense, controls = prepared.source, []
    if dense.task_file.recovery_steps:
        dense, scores_of_dense = _dense_or_longer(prepared, run)
        controls.append(Control(DENSE, _bytes(dense, None), scores_of_dense))
    jobs: dict[tuple[str, str], Job[Score]] = {}
    for name, quantisation in QUANTISATIONS.items():
        replacement = _Replacement(partial(_quantised, quantisation), tables=QUANTISATIONS["int8"])
        for task, data in prepared.data.items():
            jobs[name, task] = partial(_score_with, replacement, dense.alone(task), task, data)
    scores = _measured(jobs, dense, run, control_names(prepared.task_file, prepared.data))
    return controls + [
        Control(name, _bytes(dense, quantisation), scores[name]) for name, quantisation in QUANTISATIONS.items()
    ]


def _dense_or_longer(prepared: Prepared, run: CompileRun) -> tuple[DenseModel, Mapping[str, Score]]:
    """The dense model trained as long as the sparse one, or as it was if that does better: a user would keep that.

    Validation data decide; held-out data only where a task has none.
    """
    dense, data = prepared.source, prepared.data
    longer = trained_on(dense, data, run.journal, partial(run.progress, f"control {DENSE}: train on"))
    measured = partial(_scores, names=control_names(prepared.task_file, data))
    validation = validation_data(data)
    if validation is None:
        scores = measured(DENSE, longer, data, run)
        return (longer, scores) if _gains(scores, prepared.dense) else (dense, prepared.dense)
    now, before = (measured(*each, validation, run) for each in zip(CHOICE, (longer, dense), strict=True))
    return (longer, measured(DENSE, longer, data, run)) if _gains(now, before) else (dense, prepared.dense)


def _scores(
    name: str, source: DenseModel, data: Mapping[str, TaskData], run: CompileRun, names: Sequence[str]
) -> Mapping[str, Score]:
    """Task → score of a dense model, which progress calls by this name."""
    jobs = {(name, task): partial(score_alone, source.alone(task), task, of_task) for task, of_task in data.items()}
    return _measured(jobs, source, run, names)[name]


def _gains(now: Mapping[str, Score], before: Mapping[str, Score]) -> bool:
    """Whether tasks have gained on average, or lost nothing."""
    return sum(gain(now[task], before[task]) for task in now) >= 0


def trained_on(dense: DenseModel, data: Mapping[str, TaskData], journal: Journal, progress: StepProgress) -> DenseModel:
    """A copy of the dense model, trained by the data, rates, seed and early stopping of recovery, on labels alone.

    Raises:
        CompileError: the loss is no longer finite.
    """
    spec, steps = dense.task_file.recover, dense.task_file.recovery_steps
    longer = replace(dense, models=copy.deepcopy(dense.models))
    tasks = list(longer.models)
    turns = alternating_batches(data, tasks, spec.batch, spec.seed)
    validation = validation_of(data, tasks, spec.patience)
    with placed(longer.models.values(), training_device()):
        rates = groups(longer, tasks, spec)
        training = Training(rates, turns, dense_error(longer, data), steps, validation)
        training.run(journal, _STAGE, progress)
    return longer


def gain(now: Score, before: Score) -> float:
    """What a task has gained: in its share of right answers, or in the logarithm of its perplexity."""
    if now.higher_is_better:
        return now.value - before.value
    return math.log(before.value / now.value) if now.value < math.inf else -math.inf


def _shared_mask(prepared: Prepared, run: CompileRun) -> Control:
    """One mask for all tasks, in the bundle's dtype, chosen and recovered as the bundle's masks were."""

    def told(stage: str, done: int, total: int) -> None:
        run.progress(f"{MASK}: {stage}", done, total)

    masks = choose_blocks(prepared.changed(alignment=float("inf"))).masks
    journal, workers = run.journal.part("shared-mask"), run.workers_on(prepared.source)
    weights = recover(prepared.source, prepared.data, masks, journal, told, workers)
    kept = sum(
        len(StoredBlocks.of(info.layer, masks.keep[info.name], weights.versions(info)).blocks)
        for info in weights.source.paged
    )
    size = block_bytes(prepared.task_file.block, prepared.task_file.dtype)
    jobs: dict[tuple[str, str], Job[Score]] = {}
    for task, data in prepared.data.items():
        replacement = _Replacement(partial(_under_mask, weights.alone(task), masks), masks=masks)
        jobs[MASK, task] = partial(_score_with, replacement, weights.source.alone(task), task, data)
    names = control_names(prepared.task_file, prepared.data)
    return Control(MASK, kept * size, _measured(jobs, weights.source, run, names)[MASK])


def _measured(
    jobs: Mapping[tuple[str, str], Job[Score]], source: DenseModel, run: CompileRun, names: Sequence[str]
) -> Measured:
    """The scores that jobs of these controls and tasks find; ``names`` are those of all controls."""

    def told(key: tuple[str, str]) -> StepProgress:
        return partial(run.progress, measuring(*key, names))

    done = {one.key: one.value for one in run.workers_on(source).each(jobs, told, COPIES)}
    scores: dict[str, dict[str, Score]] = {}
    for control, task in jobs:
        scores.setdefault(control, {})[task] = done[control, task]
    return scores


@dataclass(frozen=True)
class _Replacement:
    """What a control has in the place of a model's weights.

    Attributes:
        values: gives the values of a paged weight.
        tables: how embedding tables are quantised; None leaves them.
        masks: routers choose only experts that these leave something of; None leaves routers alone.
    """

    values: Values
    tables: Quantisation | None = None
    masks: Masks | None = None

    def weights(self, source: DenseModel, task: str) -> dict[str, Tensor]:
        """All that a task's module gets, by the module's own names."""
        model = source.models[task]
        with torch.no_grad():
            weights = {
                module_name(info, model.base_model_prefix): source.scratch.hold(self.values(source, task, info))
                for info in source.paged
            }
            weights |= {} if self.masks is None else self.masks.routes(source, task)
            if self.tables is not None:
                weights |= _rounded_tables(model, self.tables)
        return weights


def _score_with(
    replacement: _Replacement, source: DenseModel, task: str, data: TaskData, progress: StepProgress
) -> Score:
    """The score of a task's module with a control's weights."""
    replaced = Replaced(source.models[task], replacement.weights(source, task))
    return torch_score(replaced, data, source.task_file.dtype, progress)


def _rounded_tables(model: nn.Module, quantisation: Quantisation) -> dict[str, Tensor]:
    """A module's embedding tables as they come back, by name."""
    return {
        f"{name}.weight": quantisation.apply(part.weight.detach())
        for name, part in model.named_modules()
        if is_plain_embedding(part)
    }


def _quantised(quantisation: Quantisation, dense: DenseModel, task: str, info: PagedWeightInfo) -> Tensor:
    return quantisation.apply(dense.linear(task, info.name).weight.detach()).bfloat16().float()


def _under_mask(weights: TaskWeights, masks: Masks, source: DenseModel, task: str, info: PagedWeightInfo) -> Tensor:
    whole = stored(weights.weight(task, info), info.grid, source.task_file.dtype)
    return masks.masked(task, info, whole) + dense_part(weights.low_rank.get(task, {}), info.name)


def _bytes(dense: DenseModel, quantisation: Quantisation | None) -> int:
    """Bytes of the paged weights; in bfloat16 if they aren't quantised."""
    weights = TaskWeights(dense)

    def fraction(info: PagedWeightInfo) -> float:
        return 1.0 if quantisation is None else quantisation.fraction(info.grid.in_features)

    return round(sum(2 * _distinct(weights, info) * fraction(info) for info in dense.paged))


def _distinct(weights: TaskWeights, info: PagedWeightInfo) -> float:
    """Elements of a paged weight, counted once for each version of them."""
    versions = np.sort(weights.versions(info), axis=1)
    copies = 1 + (np.diff(versions, axis=1) != 0).sum(1).mean()
    return float(copies) * info.elements

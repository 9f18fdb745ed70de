"""Controls: simpler ways to serve the same tasks, measured on the same data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from weightpager.answers.score import Score
from weightpager.bundle.report.compile_report import DENSE, FEW, MASK, Compared
from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.measuring.quantise import QUANTISATIONS, Quantisation
from weightpager.compiler.measuring.report import Control
from weightpager.compiler.measuring.torch_score import torch_score
from weightpager.compiler.model.dense_model import PagedWeightInfo, Source
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.stored_blocks import StoredBlocks
from weightpager.compiler.recovery.low_rank import dense_part
from weightpager.compiler.recovery.recover import recover
from weightpager.compiler.recovery.rounding import stored
from weightpager.compiler.recovery.train import dense_error, groups
from weightpager.compiler.recovery.training_loop import Training, in_turn
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.resume.run import Run
from weightpager.compiler.selection.block_choice import choose_blocks
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.training.device import placed, training_device
from weightpager.compiler.training.early_stopping import validation_of
from weightpager.compiler.training.evaluate import Model
from weightpager.compiler.training.masks import Masks, module_name
from weightpager.compiler.training.replaced import Replaced
from weightpager.nn import is_plain_embedding
from weightpager.page_dtype import block_bytes
from weightpager.progress import Progress, Steps

Values = Callable[[str, PagedWeightInfo], Tensor]
"""(task, paged weight) → the values ``[out_features, in_features]`` that a control would hold."""

_STAGE = "dense"
"""The journal's stage in which the dense model is trained further."""


def compared(task_file: TaskFile, data: Mapping[str, TaskData]) -> Compared:
    """What is compared: as the task file says; if it doesn't, nothing is trained for what too few items could tell."""
    few = all(len(of_task.eval) < FEW for of_task in data.values())
    if few and task_file.recovery_steps and "compare" not in task_file.model_fields_set:
        return "few"
    return task_file.compare


def control_names(task_file: TaskFile, data: Mapping[str, TaskData]) -> list[str]:
    """Names of the controls that `measure_controls` measures, in its order."""
    what = compared(task_file, data)
    if what in ("none", "few"):
        return []
    trains = task_file.recovery_steps > 0
    several = len(task_file.tasks) > 1 and bool(np.isfinite(task_file.alignment))
    return [DENSE] * trains + [*QUANTISATIONS] + [MASK] * (several and (what == "all" or not trains))


def measure_controls(prepared: Prepared, run: Run) -> list[Control]:
    """All controls that are `compared`; where recovery trains, each of them is trained as long.

    Raises:
        CompileError: training diverged.
    """
    names = control_names(prepared.source.task_file, prepared.data)
    controls = _dense_controls(prepared, run) if names else []
    if MASK in names:
        controls.append(_shared_mask(prepared, run))
    return controls


def cost(task_file: TaskFile, what: Compared | None = None) -> str | None:
    """What the controls will take, in words; None if nothing is trained for them. ``what`` is `compared`, if known."""
    steps, what = task_file.recovery_steps, what or task_file.compare
    if steps == 0 or what in ("none", "few"):
        return None
    masked = " and one shared mask" if what == "all" and len(task_file.tasks) > 1 else ""
    each = " each" if masked else ""
    return (
        f"{steps} steps of recovery, and as many{each} for the dense model{masked} to compare it with; "
        "'--compare none' leaves these out"
    )


def _dense_controls(prepared: Prepared, run: Run) -> list[Control]:
    """The dense model, if it is trained on, and with its paged weights quantised: one copy for all tasks.

    Who quantises a model has its embedding tables in int8.
    """
    dense, controls = prepared.source, []
    if dense.task_file.recovery_steps:
        dense, scores = _dense_or_longer(prepared, run)
        controls.append(Control(DENSE, _bytes(dense, None), scores))
    for name, quantisation in QUANTISATIONS.items():
        few_bits = _quantised(dense, quantisation)
        scores = _scores(name, dense, prepared.data, few_bits, run.progress, QUANTISATIONS["int8"])
        controls.append(Control(name, _bytes(dense, quantisation), scores))
    return controls


def _dense_or_longer(prepared: Prepared, run: Run) -> tuple[Source, Mapping[str, Score]]:
    """The dense model trained as long as the sparse one, or as it was if that does better: a user would keep that."""
    longer = trained_on(
        prepared.source, prepared.data, run.journal, partial(run.progress, f"control {DENSE}: train on")
    )
    scores = _evaluated(DENSE, longer, prepared.data, longer.models.__getitem__, run.progress)
    gained = sum(gain(scores[task], prepared.dense[task]) for task in scores)
    return (longer, scores) if gained >= 0 else (prepared.source, prepared.dense)


def trained_on(dense: Source, data: Mapping[str, TaskData], journal: Journal, progress: Steps) -> Source:
    """A copy of the dense model, trained by the data, rates, seed and early stopping of recovery, on labels alone.

    Raises:
        CompileError: the loss is no longer finite.
    """
    spec, steps = dense.task_file.recover, dense.task_file.recovery_steps
    longer = replace(dense, models=copy.deepcopy(dense.models))
    tasks = list(longer.models)
    turns, watched = in_turn(data, tasks, spec.batch, spec.seed), validation_of(data, tasks, spec.patience)
    with placed(longer.models.values(), training_device()):
        rates = groups(longer, tasks, spec)
        training = Training(rates, turns, dense_error(longer, data), steps, watched, spec.patience)
        training.run(journal, _STAGE, progress)
    return longer


def gain(now: Score, before: Score) -> float:
    """What a task has gained: in its share of right answers, or in the logarithm of its perplexity."""
    if now.higher_is_better:
        return now.value - before.value
    return math.log(before.value / now.value) if now.value < math.inf else -math.inf


def _shared_mask(prepared: Prepared, run: Run) -> Control:
    """One mask for all tasks, in the bundle's dtype, chosen and recovered as the bundle's masks were."""

    def told(stage: str, done: int, total: int) -> None:
        run.progress(f"{MASK}: {stage}", done, total)

    dtype = prepared.source.task_file.dtype
    masks, _ = choose_blocks(prepared.changed(alignment=float("inf")))
    weights = recover(prepared.source, prepared.data, masks, run.journal.part("shared-mask"), told)

    def values(task: str, info: PagedWeightInfo) -> Tensor:
        kept = masks.masked(task, info, stored(weights.weight(task, info), info.grid, dtype))
        return kept + dense_part(weights.low_rank.get(task, {}), info.name)

    kept = sum(
        len(StoredBlocks.of(info.layer, masks.keep[info.name], weights.versions(info)).blocks)
        for info in weights.source.paged
    )
    size = block_bytes(prepared.source.task_file.block, dtype)
    scores = _scores(MASK, weights.source, prepared.data, values, run.progress, masks=masks)
    return Control(MASK, kept * size, scores)


def _scores(
    name: str,
    source: Source,
    data: Mapping[str, TaskData],
    values: Values,
    progress: Progress,
    tables: Quantisation | None = None,
    masks: Masks | None = None,
) -> dict[str, Score]:
    """The scores of a source's modules with other values in their paged weights, and with quantised ``tables``.

    Where there are ``masks``, routers choose experts that these leave something of.
    """

    def with_values(task: str) -> Model:
        model = source.models[task]
        with torch.no_grad():
            weights = {
                module_name(info, model.base_model_prefix): source.scratch.hold(values(task, info))
                for info in source.paged
            }
            weights |= {} if masks is None else masks.routes(source, task)
            if tables is not None:
                weights |= _rounded_tables(model, tables)
        return Replaced(model, weights)

    return _evaluated(name, source, data, with_values, progress)


def _rounded_tables(model: nn.Module, quantisation: Quantisation) -> dict[str, Tensor]:
    """A module's embedding tables as they come back, by name."""
    return {
        f"{name}.weight": quantisation.apply(part.weight.detach())
        for name, part in model.named_modules()
        if is_plain_embedding(part)
    }


def _evaluated(
    name: str,
    source: Source,
    data: Mapping[str, TaskData],
    model_of: Callable[[str], Model],
    progress: Progress,
) -> dict[str, Score]:
    dtype = source.task_file.dtype
    return {
        task: torch_score(model_of(task), of, dtype, partial(progress, f"control {name}: {task}"))
        for task, of in data.items()
    }


def _quantised(dense: Source, quantisation: Quantisation) -> Values:
    return lambda task, info: quantisation.apply(dense.linear(task, info.name).weight.detach()).bfloat16().float()


def _bytes(dense: Source, quantisation: Quantisation | None) -> int:
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

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

from weightpager import evaluation
from weightpager.answers.score import Score
from weightpager.bundle.report.compile_report import DENSE, FEW, MASK, Compared, ControlScore
from weightpager.compiler.data import TaskData
from weightpager.compiler.measure import score_alone, torch_score
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.pack import StoredBlocks
from weightpager.compiler.recovery.finetune import dense_error, groups
from weightpager.compiler.recovery.own_parameters import dense_part
from weightpager.compiler.recovery.recover import recover
from weightpager.compiler.recovery.rounding import stored
from weightpager.compiler.recovery.training_loop import Training, alternating_batches
from weightpager.compiler.resume.journal import CompileRun, Job, Journal
from weightpager.compiler.resume.shared import COPIES
from weightpager.compiler.selection.block_choice import choose_blocks
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.training.device import placed, training_device
from weightpager.compiler.training.early_stopping import validation_of
from weightpager.compiler.training.evaluate import Replaced
from weightpager.compiler.training.masks import Masks, module_name
from weightpager.nn.embedding import is_plain_embedding
from weightpager.page_dtype import ENCODINGS, Encoding, block_bytes, nearest
from weightpager.progress import StepProgress, prefixed

_SCALE_BYTES = 2  # 16 bits per group


@dataclass(frozen=True)
class Quantisation:
    """Weights of few bits, with a scale for each ``group`` of neighbouring inputs of one output.

    Attributes:
        group: number of values that share a scale, a power of two. 0 for a whole row, whose scale is its largest value
            over the largest number.
        divisors: of a group's largest value, for the scales that are tried: the one with the least squared error is
            taken, as in a bundle's pages.
    """

    bits: int
    group: int
    divisors: tuple[float, ...] = ()

    def fraction(self, in_features: int) -> float:
        """Bytes of a quantised weight, scales included, as a share of the same one in bfloat16."""
        return self.bits / 16 + _SCALE_BYTES / (2 * (self.group or in_features))

    def apply(self, weight: Tensor) -> Tensor:
        """``weight [O, I]`` as it comes back: quantised and multiplied out, in its own dtype."""
        return self._by_group(weight) if self.group else self._by_row(weight)

    def _by_row(self, weight: Tensor) -> Tensor:
        top = 2 ** (self.bits - 1) - 1
        scale = weight.abs().amax(-1, keepdim=True).half().to(weight.dtype) / top  # [O, 1]
        numbers: Tensor = (weight / scale.clamp(min=1e-12)).round_().clamp_(-top, top)
        return numbers.mul_(scale)

    def _by_group(self, weight: Tensor) -> Tensor:
        rows, columns = weight.shape
        padded = torch.nn.functional.pad(weight.float(), (0, -columns % self.group)).view(rows, -1, self.group)
        found = torch.from_numpy(nearest(padded.cpu().numpy(), self.encoding))
        return found.view(rows, -1)[:, :columns].to(weight).contiguous()

    @property
    def encoding(self) -> Encoding:
        """The numbers of a group and its scales, as pages would hold them."""
        half = 2 ** (self.bits - 1)
        return replace(ENCODINGS["int8"], bits=self.bits, least=-half, largest=half - 1, divisors=self.divisors)


INT8 = Quantisation(8, 0)
"""As LLM.int8 and torchao do it: a scale per output."""

_GROUP = 32
"""Of values that share a scale, as in GGUF's Q4_0."""

INT4 = Quantisation(4, _GROUP, ENCODINGS["int4"].divisors)
"""As a bundle of all blocks rounds them in int4. Q4_0, which tries one scale, has a tenth more of squared error."""

_CLIPPED = (1.15, 1.3, 1.5, 1.75, 2.0, 2.5)
"""Multiples of the least number, as divisors: with two or three bits it pays to cut off the largest values."""


def _fewer(bits: int) -> Quantisation:
    half = 2.0 ** (bits - 1)
    scaled = [half / 8 * divisor for divisor in ENCODINGS["int4"].divisors if abs(divisor) > 7]
    clipped = [half * sign * multiple for multiple in _CLIPPED for sign in (1, -1)]
    return Quantisation(bits, _GROUP, (*scaled, *clipped, *range(int(half) - 1, 0, -1)))


INT3, INT2 = _fewer(3), _fewer(2)
"""The same with fewer bits."""

QUANTISATIONS = {"int8": INT8, "int4": INT4, "int3": INT3, "int2": INT2}
"""The quantisations that a bundle is compared with, most bits first."""


CHOICE = (f"{DENSE} on validation data", f"{DENSE} as it was on validation data")
"""What is measured to choose between the dense model that is trained on and the one that isn't, in this order."""


def compared(task_file: TaskFile, data: Mapping[str, TaskData]) -> Compared:
    """What is compared: as the task file says; if it doesn't, nothing that takes long for what few items could tell.

    Training takes long, and so does writing the answers of a task once for each control.
    """
    few = all(len(of_task.eval) < FEW for of_task in data.values())
    takes_long = task_file.recovery_steps > 0 or any(task.completes for task in task_file.tasks.values())
    if few and takes_long and "compare" not in task_file.model_fields_set:
        return "few"
    return task_file.compare


def control_names(task_file: TaskFile, data: Mapping[str, TaskData]) -> list[str]:
    """Names of the controls that `controls.measure_controls` measures, in its order."""
    what = compared(task_file, data)
    if what in ("none", "few"):
        return []
    trains = task_file.recovery_steps > 0
    return [DENSE] * trains + [*QUANTISATIONS] + [MASK] * shares_mask(task_file, what)


def measuring(control: str, task: str, names: Sequence[str]) -> str:
    """What progress calls the measurement of a control on a task, ``names`` being those of all controls."""
    place = f" ({names.index(control) + 1} of {len(names)})" if control in names else ""
    return f"control {control}{place}: {task}"


def control_work(task_file: TaskFile, what: Compared | None = None) -> str | None:
    """What the controls will take, in words; None if nothing is trained for them. ``what`` is `compared`, if known."""
    steps, what = task_file.recovery_steps, what or task_file.compare
    if steps == 0 or what in ("none", "few"):
        return None
    masked = " and one shared mask" if shares_mask(task_file, what) else ""
    each = " each" if masked else ""
    return (
        f"{steps} steps of recovery, and as many{each} for the dense model{masked} to compare it with; "
        "'--compare none' leaves these out"
    )


def validation_data(data: Mapping[str, TaskData]) -> Mapping[str, TaskData] | None:
    """The tasks with their validation data in place of held-out data; None if one has none."""
    found = {task: replace(of_task, eval=of_task.validation) for task, of_task in data.items() if of_task.validation}
    return found if len(found) == len(data) else None


def shares_mask(task_file: TaskFile, what: Compared) -> bool:
    """Whether one shared mask is measured: if asked for, or cheap, and if it isn't what is compiled anyway."""
    wanted = what == "all" or (what == "dense" and task_file.recovery_steps == 0)
    return wanted and len(task_file.tasks) > 1 and bool(np.isfinite(task_file.alignment))


@dataclass(frozen=True)
class Control:
    """A simpler way to serve all tasks, measured; its paged weights take ``resident_bytes`` at any time."""

    name: str
    resident_bytes: int
    scores: Mapping[str, Score]


def control_scores(
    controls: Sequence[Control], ours: Mapping[str, Score], dense: Mapping[str, Score]
) -> list[ControlScore]:
    """The controls' lines of the report.

    ``dense`` is the score of the dense model that recovery set out from. Where one among the controls was trained as
    long as the bundle, losses are counted from this one.
    """
    dense = next((control.scores for control in controls if control.name == DENSE), dense)
    return [
        ControlScore(
            name=control.name,
            resident_bytes=control.resident_bytes,
            scores={task: score.value for task, score in control.scores.items()},
            intervals={task: evaluation.of_score(score) for task, score in control.scores.items()},
            loss_intervals={
                task: evaluation.of_gap(dense[task], score, dense[task]) for task, score in control.scores.items()
            },
            gap_intervals={
                task: evaluation.of_gap(ours[task], score, dense[task]) for task, score in control.scores.items()
            },
        )
        for control in controls
    ]


Values = Callable[[DenseModel, str, PagedWeightInfo], Tensor]
"""(model, task, paged weight) → the values ``[out_features, in_features]`` that a control would hold."""

Measured = Mapping[str, Mapping[str, Score]]
"""Control → task → what it reached."""

_STAGE = "dense"
"""The journal's stage in which the dense model is trained further."""


def measure_controls(prepared: Prepared, run: CompileRun) -> list[Control]:
    """All controls that are `compared`; where recovery trains, each of them is trained as long."""
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
    """A copy of the dense model, trained by the data, rates, seed and early stopping of recovery, on labels alone."""
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
    told = prefixed(run.progress, MASK)
    masks = choose_blocks(prepared.changed(alignment=float("inf"))).masks
    journal, workers = run.journal.part("shared-mask"), run.workers_on(prepared.source)
    weights = recover(prepared.source, prepared.data, masks, journal, told, workers)
    kept = sum(
        len(StoredBlocks.of(info.layer, masks.keep[info.name], weights.versions(info)).blocks)
        for info in weights.source.paged
    )
    size = block_bytes(prepared.task_file.block, prepared.task_file.dtype)
    jobs: dict[tuple[str, str], Job[Score]] = {
        (MASK, task): partial(_score_with, _sparse(weights, masks, task), weights.source.alone(task), task, data)
        for task, data in prepared.data.items()
    }
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
                module_name(info.name, model.base_model_prefix): source.scratch.hold(self.values(source, task, info))
                for info in source.paged
            }
            weights |= {} if self.masks is None else self.masks.besides(source, task)
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


def sparse_weights(weights: TaskWeights, masks: Masks, task: str) -> dict[str, Tensor]:
    """What a task's module gets to compute as its pages would, by the module's own names."""
    return _sparse(weights, masks, task).weights(weights.source, task)


def _sparse(weights: TaskWeights, masks: Masks, task: str) -> _Replacement:
    return _Replacement(partial(_under_mask, weights.alone(task), masks), masks=masks)


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

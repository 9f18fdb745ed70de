"""``keep``: as few blocks, half-layers or layers as leave every task its share of the dense model's metric.

The metric is measured on validation data, else on training data, with masks laid on the dense weights. Where no
recovery follows, these are rounded as pages will hold them; recovery wins back more than rounding costs. Few rows tell
which steps to take, and all of them whether what was found keeps its promise; if not, steps are taken back. The promise
is measured again on the bundle, for its report.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weightpager.answers.score import Score
from weightpager.bundle.report.compile_report import Keep, KeepStep
from weightpager.compiler.alignment.problem import Bools, Floats
from weightpager.compiler.data import TaskData
from weightpager.compiler.measure import measure_written, torch_score
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.half_layers import HalfLayer, units_of
from weightpager.compiler.recovery.rounding import stored
from weightpager.compiler.resume.journal import CompileRun
from weightpager.compiler.selection.block_choice import ChosenBlocks, choose_blocks, of_whole
from weightpager.compiler.selection.half_layers import Trials, half_saliency, trial_rows, zeroed
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.training.evaluate import Model, Replaced
from weightpager.compiler.training.masks import Rounded, module_name
from weightpager.errors import CompileError
from weightpager.page_dtype import block_bytes
from weightpager.progress import silent

_log = logging.getLogger(__name__)

STAGE = "keep"

_ITEMS, FEW = 512, 64
"""Validation examples that a metric is measured on at most, and training examples where a task has none; and those that
tell which steps to take."""

HALVINGS, _CHECKS = 6, 4
_MOST = 0.95
"""Sparsity above which nothing has been measured."""

RANKED, _MISSES = 4, 3
"""Half-layers whose loss is found anew before a step, and steps that may fail one after the other."""


@dataclass(frozen=True)
class Kept:
    """What ``keep`` leads to.

    Attributes:
        prepared: the tasks with the sparsities that were found.
        dense: the dense model's metric on the same validation data.
    """

    prepared: Prepared
    chosen: ChosenBlocks
    path: Sequence[KeepStep]
    dense: Mapping[str, Score]


def choose_kept(prepared: Prepared, run: CompileRun, *, together: bool = False) -> Kept:
    """As few blocks, half-layers or layers as the task file's ``keep`` asks for, which must be stated.

    Half-layers and layers are dropped one by one; ``together`` has the aligner choose them for all tasks, like blocks.
    So it does where alignment is infinite: then all tasks drop the same.
    """
    metric, together = _Metric.of(prepared), together or math.isinf(prepared.task_file.alignment)
    of = _of_units if units_of(prepared.source) and not together else _aligned
    return Kept(*of(prepared, metric, run), metric.dense)


def keep_of(kept: Kept, root: Path, run: CompileRun) -> Keep:
    """What the tasks of a bundle that was written keep, for its report; a task that keeps too little is warned of."""
    wanted, data = kept.prepared.task_file.keep or 0.0, kept.prepared.data
    scores = measure_written(
        root, {task: validation(of) for task, of in data.items()}, run.progress, run.workers
    ).scores
    shares = {task: share_kept(score, kept.dense[task]) for task, score in scores.items()}
    for task, share in shares.items():
        if not share >= wanted:  # NaN, too
            _log.warning("keep: tasks.%s keeps %.3f of the dense model's metric, %g was asked for", task, share, wanted)
    return Keep(share=wanted, kept=shares, path=list(kept.path))


def share_kept(now: Score, dense: Score) -> float:
    """What is left of the dense model's metric, which isn't 0; 1 of errors that are none any more."""
    over, under = (now, dense) if now.higher_is_better else (dense, now)
    return 1.0 if under.value == 0 else over.value / under.value


def validation(data: TaskData, most: int = _ITEMS) -> TaskData:
    """A task with the rows that its promise is measured on, or the first of these, in the place of held-out data."""
    return replace(data, eval=tuple(data.validation or data.train)[:most])


def _has_more(data: TaskData) -> bool:
    """Whether there are more rows than the few that tell which steps to take."""
    return len(validation(data).eval) > FEW


class _InPages:
    """Weights as pages will hold them, in the source's scratch; each is rounded once."""

    def __init__(self, source: DenseModel) -> None:
        self._source, self._held = source, dict[tuple[str, int], Tensor]()
        self._grids = {info.name: info.grid for info in source.paged}

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        place, source = (name, weight.data_ptr()), self._source  # some weights are a task's own
        if place not in self._held:
            self._held[place] = source.scratch.hold(stored(weight, self._grids[name], source.task_file.dtype))
        return self._held[place]


@dataclass(frozen=True)
class _Metric:
    """Measures how much of the dense model's metric tasks keep."""

    prepared: Prepared
    dense: Mapping[str, Score]
    dense_of_few: Mapping[str, Score]
    rounded: Rounded | None

    @classmethod
    def of(cls, prepared: Prepared) -> _Metric:
        """Measure the dense models. Raises `CompileError` where one has no share, 0 or no number."""
        models = prepared.source.models

        def scores(most: int) -> dict[str, Score]:
            return {
                task: torch_score(models[task], validation(of_task, most), prepared.task_file.dtype, silent)
                for task, of_task in prepared.data.items()
            }

        dense = scores(_ITEMS)
        for task, score in dense.items():
            if score.value == 0 or not math.isfinite(score.value):
                raise CompileError(
                    f"keep: expected a metric of the dense model of which a share can be kept, found tasks.{task} with "
                    f"{score.metric} {score.value:g}; state a sparsity"
                )
        rounded = _InPages(prepared.source) if prepared.task_file.recover.method == "none" else None
        of_few = scores(FEW) if any(map(_has_more, prepared.data.values())) else dense
        return cls(prepared, dense, of_few, rounded)

    def share(self, task: str, model: Model, *, whole: bool = False) -> tuple[float, float]:
        """The share that a task keeps, and the metric itself, on few rows or on all."""
        data = validation(self.prepared.data[task], _ITEMS if whole else FEW)
        now = torch_score(model, data, self.prepared.task_file.dtype, silent)
        return share_kept(now, (self.dense if whole else self.dense_of_few)[task]), now.value

    def under(self, chosen: ChosenBlocks, *, whole: bool) -> dict[str, tuple[float, float]]:
        """`share` of all tasks under masks."""
        source, found = self.prepared.source, {}
        for task, model in source.models.items():
            weights = chosen.masks.held(source, task, self.rounded)
            found[task] = self.share(task, Replaced(model, weights), whole=whole)
        return found

    def without(self, task: str, dropped: Collection[HalfLayer], *, whole: bool = False) -> tuple[float, float]:
        """`share` of a task without these."""
        source = self.prepared.source
        model, base = source.models[task], source.models[task].base_model_prefix
        weights = {}
        if self.rounded is not None:
            weights = {
                module_name(info.name, base): self.rounded(info.name, source.linear(task, info.name).weight)
                for info in source.paged
            }
        with zeroed(source, task, dropped):
            return self.share(task, Replaced(model, weights), whole=whole)

    def step(self, task: str, dropped: Sequence[str], blocks: float, value: float, *, taken: bool) -> KeepStep:
        size = block_bytes(self.prepared.task_file.block, self.prepared.task_file.dtype)
        return KeepStep(task=task, dropped=list(dropped), metric=value, bytes=round(blocks * size), taken=taken)


def _at(prepared: Prepared, sparsity: Mapping[str, float]) -> Prepared:
    """The tasks with these sparsities."""
    tasks = prepared.task_file.tasks
    return prepared.changed(
        tasks={name: spec.model_copy(update={"sparsity": sparsity[name]}) for name, spec in tasks.items()}
    )


def _aligned(prepared: Prepared, metric: _Metric, run: CompileRun) -> tuple[Prepared, ChosenBlocks, list[KeepStep]]:
    """All tasks' sparsities bisected at once: they share blocks, so each is measured beside the others."""
    tasks = [*prepared.task_file.tasks]
    wanted, blocks = prepared.task_file.keep or 0.0, sum(info.grid.count for info in prepared.source.paged)
    low, high, first = np.zeros(len(tasks)), np.full(len(tasks), _MOST), 0
    steps: list[KeepStep] = []
    reached = run.journal.read(STAGE, lambda kept: {"low", "high", *_entry([])} == kept.keys())
    if reached is not None:
        first, low, high = reached.step, reached.tensors["low"].numpy().copy(), reached.tensors["high"].numpy().copy()
        steps = _steps(reached.tensors, [(task, ()) for _ in range(first) for task in tasks])

    def tried(sparsity: Floats, *, whole: bool = False) -> tuple[Prepared, ChosenBlocks, Bools]:
        at = _at(prepared, dict(zip(tasks, sparsity.tolist(), strict=True)))
        chosen = choose_blocks(at)
        shares = metric.under(chosen, whole=whole)
        met = np.array([shares[task][0] >= wanted for task in tasks])
        if math.isinf(prepared.task_file.alignment):  # one mask for all
            met[:] = met.all()
        for number, task in enumerate(tasks):
            kept = (1 - sparsity[number]) * blocks
            steps.append(metric.step(task, [], kept, shares[task][1], taken=bool(met[number])))
        return at, chosen, met

    for number in range(first, HALVINGS):
        middle = (low + high) / 2
        met = tried(middle)[2]
        low, high = np.where(met, middle, low), np.where(met, high, middle)
        bounds = {"low": torch.from_numpy(low), "high": torch.from_numpy(high)}
        run.journal.write(STAGE, number + 1, bounds | _entry(steps))
        run.progress("find the sparsity", number + 1, HALVINGS + 1)
    for _ in range(_CHECKS):
        at, chosen, met = tried(low, whole=True)
        if met.all():
            break
        low = np.where(met, low, 0.8 * low)
    else:
        at, chosen, _ = tried(np.where(met, low, 0.0), whole=True)
    run.progress("find the sparsity", HALVINGS + 1, HALVINGS + 1)
    return at, chosen, steps


def _entry(steps: Sequence[KeepStep]) -> dict[str, torch.Tensor]:
    """What the journal has of steps that were tried, beside what each of them dropped."""
    return {
        "metric": torch.tensor([step.metric for step in steps], dtype=torch.float64),
        "bytes": torch.tensor([step.bytes for step in steps], dtype=torch.int64),
        "taken": torch.tensor([step.taken for step in steps], dtype=torch.bool),
    }


def _steps(entry: Mapping[str, torch.Tensor], tried: Sequence[tuple[str, Sequence[str]]]) -> list[KeepStep]:
    """The steps that an entry of the journal tells of; ``tried`` has the task of each, and what it dropped."""
    values = zip(*(entry[name].tolist() for name in _entry([])), strict=True)
    return [
        KeepStep(task=task, dropped=[*dropped], metric=metric, bytes=size, taken=taken)
        for (task, dropped), (metric, size, taken) in zip(tried, values, strict=True)
    ]


def _of_units(prepared: Prepared, metric: _Metric, run: CompileRun) -> tuple[Prepared, ChosenBlocks, list[KeepStep]]:
    """Half-layers, or layers, of one task after the other; what earlier tasks do without is dropped rather."""
    source, units = prepared.source, units_of(prepared.source)
    dropped = np.zeros((len(units), len(source.models)), np.bool_)  # [half-layers, tasks]
    steps: list[KeepStep] = []
    for number, task in enumerate(source.models):
        search = _Greedy(prepared, metric, task, units, dropped[:, :number].mean(1) if number else np.zeros(len(units)))
        found, of_task = search.run(run)
        dropped[found, number] = True
        steps += of_task
    total = sum(info.grid.count for info in source.language)
    sizes = np.array([half.blocks for half in units])
    sparsity = {task: float(sizes[dropped[:, at]].sum() / total) for at, task in enumerate(source.models)}
    at = _at(prepared, {task: min(share, 1 - 2.0**-20) for task, share in sparsity.items()})
    return at, of_whole(at, units, ~dropped), steps


@dataclass(frozen=True)
class _Greedy:
    """One task's half-layers, dropped one by one as long as the task keeps enough of its metric.

    Attributes:
        others: share of the tasks before this one that have dropped each half-layer.
    """

    prepared: Prepared
    metric: _Metric
    task: str
    units: Sequence[HalfLayer]
    others: Floats

    def run(self, run: CompileRun) -> tuple[list[int], list[KeepStep]]:
        """Numbers of the half-layers that go, in their order, and the steps that were tried.

        In the journal stand those that were tried, what came of them, and the losses that the rest are known to add.
        """
        source, stage = self.prepared.source, f"{STAGE}-{self.task}"
        saliency = half_saliency(self.prepared.saliency[self.task], self.units)
        reached = run.journal.read(stage, lambda kept: {"tried", "gains", *_entry([])} == kept.keys())
        gains = dict(enumerate(saliency.tolist() if reached is None else reached.tensors["gains"].tolist()))
        tried: list[int] = [] if reached is None else reached.tensors["tried"].tolist()
        steps: list[KeepStep] = []
        if reached is not None:
            steps = _steps(reached.tensors, [(self.task, self.units[at].modules) for at in tried])
        gone = [at for at, step in zip(tried, steps, strict=True) if step.taken]
        total = sum(info.grid.count for info in source.paged)
        misses = next((back for back, step in enumerate(reversed(steps)) if step.taken), len(steps))
        left = {*range(len(self.units))} - {*tried}
        if not left or misses >= _MISSES:
            return self._confirmed(gone, tried, steps)
        trials = Trials(source, self.task, trial_rows(self.prepared.data[self.task]))
        base = trials.start([self.units[at] for at in gone])
        while left and misses < _MISSES:
            best = self._best(trials, gains, left, gone, base)
            share, value = self.metric.without(self.task, [self.units[at] for at in (*gone, best)])
            left.discard(best)
            kept = share >= self._wanted
            names = [*self.units[best].modules]
            blocks = total - sum(self.units[at].blocks for at in (*gone, best))
            steps.append(self.metric.step(self.task, names, blocks, value, taken=kept))
            tried.append(best)
            misses = 0 if kept else misses + 1
            if kept:
                gone.append(best)
                base = trials.start([self.units[at] for at in gone])
            entry = {
                "tried": torch.tensor(tried, dtype=torch.int64),
                "gains": torch.tensor([gains[at] for at in range(len(gains))], dtype=torch.float64),
            }
            run.journal.write(stage, len(tried), entry | _entry(steps))
            run.progress(
                f"drop {source.task_file.units.unit}s: {self.task}", len(self.units) - len(left), len(self.units)
            )
        run.progress(f"drop {source.task_file.units.unit}s: {self.task}", len(self.units), len(self.units))
        return self._confirmed(gone, tried, steps)

    def _confirmed(
        self, gone: Sequence[int], tried: Sequence[int], steps: Sequence[KeepStep]
    ) -> tuple[list[int], list[KeepStep]]:
        """What may go by all rows: the last steps are taken back until that is so."""
        left, found = [*gone], [*steps]
        while left and _has_more(self.prepared.data[self.task]):
            share, value = self.metric.without(self.task, [self.units[at] for at in left], whole=True)
            last, kept = tried.index(left[-1]), share >= self._wanted
            found[last] = found[last].model_copy(update={"metric": value, "taken": kept})
            if kept:
                break
            left.pop()
        return left, found

    @property
    def _wanted(self) -> float:
        return self.prepared.task_file.keep or 0.0

    def _best(
        self, trials: Trials, gains: dict[int, float], left: Collection[int], gone: Sequence[int], base: float
    ) -> int:
        """The half-layer that costs least: the loss that dropping it adds, for each block; less where others drop it.

        Gains that were found before other half-layers went are found anew for those that seem to cost least, until the
        cheapest is among them.
        """
        mean = float(np.mean([max(0.0, gains[at]) / self.units[at].blocks for at in gains]))
        strength = min(self.prepared.task_file.alignment, 1e6)
        fresh: set[int] = set()

        def price(at: int) -> tuple[float, int]:
            return gains[at] / self.units[at].blocks - strength * mean * float(self.others[at]), at

        while True:
            best = min(left, key=price)
            if best in fresh:
                return best
            if len(fresh) == RANKED:
                return min(fresh, key=price)
            gains[best] = trials.loss([self.units[at] for at in (*gone, best)]) - base
            fresh.add(best)

"""What to make of a budget, or of none, where recovery trains: candidates are trained and measured, and one is kept.

A budget can hold more blocks, or fewer with values of a task's own beside them, or one mask for all tasks. Which of
these is best depends on the tasks. All are trained for a part of the steps, the best of them for all. What decides is
the tasks' mean loss on validation data, with weights as pages hold them: it tells more from few rows than a metric.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from statistics import fmean

import torch
from torch import Tensor

from weightpager.answers.score import Score
from weightpager.bundle.report.compile_report import FitTrial, FrontierPoint
from weightpager.compiler.controls import gain, sparse_weights
from weightpager.compiler.data import Batch, TaskData
from weightpager.compiler.fit import choose_density_and_alignment, density_of, largest_useful, trial_bundle
from weightpager.compiler.keep import validation
from weightpager.compiler.measure import measure_written, score_alone
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.recovery.own_parameters import check_rank
from weightpager.compiler.recovery.recover import recover
from weightpager.compiler.resume.journal import CompileRun, Journal
from weightpager.compiler.selection.block_choice import ChosenBlocks, choose_blocks
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.selection.trial_plan import (
    BLOCKS,
    CHOICES,
    EXTENTS,
    LARGER,
    LOSS,
    LOW_RANK,
    OWN_SHARE,
    PRIVATE,
    RANK,
    SHARED,
    SPARSITIES,
    candidate_names,
    tries_sparsities,
)
from weightpager.compiler.training.early_stopping import ITEMS, validation_of
from weightpager.compiler.training.evaluate import evaluating
from weightpager.compiler.training.loss import logits_with, loss
from weightpager.errors import CompileError
from weightpager.progress import prefixed

_log = logging.getLogger(__name__)

_STAGE = "candidates"


@dataclass(frozen=True)
class Candidate:
    """Settings of a task file, and the alignments that were tried to find them."""

    name: str
    prepared: Prepared
    frontier: Sequence[FrontierPoint] = ()

    @classmethod
    def of(cls, name: str, prepared: Prepared, run: CompileRun) -> Candidate:
        """Choose its density, dtype and alignment as the task file says."""
        return cls(name, *choose_density_and_alignment(prepared, run))

    @cached_property
    def chosen(self) -> ChosenBlocks:
        """The blocks that its tasks keep."""
        return choose_blocks(self.prepared)

    def trained(self, run: CompileRun, journal: Journal, called: str, part: float = 1.0) -> TaskWeights:
        """Its values after a share of the steps; progress calls them by a name."""
        prepared = self.prepared
        if part < 1:
            spec = prepared.task_file.recover
            fewer = {key: max(1, round(part * getattr(spec, key))) for key in ("steps", "private_steps")}
            prepared = prepared.changed(recover=spec.model_copy(update={**fewer, "patience": 0}))
        told, workers = prefixed(run.progress, called), run.workers_on(prepared.source)
        return recover(prepared.source, prepared.data, self.chosen.masks, journal, told, workers)

    def scores(
        self, weights: TaskWeights, data: Mapping[str, TaskData], run: CompileRun, called: str
    ) -> Mapping[str, Score]:
        """The tasks' metrics through the engine, by a bundle of these values that is removed afterwards."""
        with trial_bundle(self.prepared, weights, self.chosen.masks, run) as bundle:
            return measure_written(bundle.path, data, prefixed(run.progress, called), run.workers).scores


@dataclass(frozen=True)
class Found:
    """The candidate that is kept, the journal that has its training, and what was tried on the way."""

    candidate: Candidate
    journal: Journal
    trials: Sequence[FitTrial] = ()


def choose_candidate(prepared: Prepared, run: CompileRun) -> Found:
    """The candidate for a task file's budget, or for none, that does best."""
    if candidate_names(prepared.task_file):
        return _best_that_fits(prepared, run)
    if tries_sparsities(prepared.task_file):
        return _smallest_that_keeps(prepared, run)
    with run.stage("align"):
        return Found(Candidate.of(BLOCKS, prepared, run), run.journal)


def _best_that_fits(prepared: Prepared, run: CompileRun) -> Found:
    extent = EXTENTS[prepared.task_file.effort]
    assert extent is not None
    prepared = replace(prepared, data=held_out_of_training(prepared.data))
    with run.stage("align"):
        found = list(found_candidates(prepared, run))
        larger = _larger(found[0], run)
    if len(found) == 1:
        return Found(found[0], run.journal)
    with run.stage("try"):
        losses = _Losses(run)
        tried = [*found, *([larger] if larger else [])]
        short = [losses.of(each, f"try {each.name}", extent.part) for each in tried]
        best = sorted(range(len(found)), key=short.__getitem__)[: extent.whole]
        whole = {at: losses.of(found[at], choice, 1.0) for at, choice in zip(best, CHOICES, strict=False)}
    trials = [_trial(each, short[at], whole.get(at)) for at, each in enumerate(tried)]
    kept = min(whole, key=whole.__getitem__)
    return Found(found[kept], run.journal.part(_folder(CHOICES[best.index(kept)])), trials)


def found_candidates(prepared: Prepared, run: CompileRun) -> Iterator[Candidate]:
    """Blocks alone, and what else fits and is something else."""
    blocks = Candidate.of(BLOCKS, prepared, run)
    yield blocks
    whole = density_of(blocks.prepared) == 1
    for name in candidate_names(prepared.task_file)[1:]:
        if whole and name != LOW_RANK:  # all tasks have all blocks: there is one mask, and nothing to load
            continue
        spec = prepared.task_file.recover
        settings: dict[str, dict[str, object]] = {
            PRIVATE: {"recover": spec.model_copy(update={"private_blocks": OWN_SHARE})},
            LOW_RANK: {"recover": spec.model_copy(update={"low_rank": RANK})},
            SHARED: {"alignment": float("inf")},
        }
        with suppress(CompileError):  # even the least of it is too large
            if name == LOW_RANK:
                check_rank(prepared.source, RANK)
            yield Candidate.of(name, prepared.changed(**settings[name]), run)


def _larger(blocks: Candidate, run: CompileRun) -> Candidate | None:
    """Blocks alone in twice the budget, or in what holds all, to tell what more memory would bring."""
    fits, useful = blocks.prepared.task_file.fits, largest_useful(blocks.prepared, run)
    if fits is None or useful is None:
        return None
    return Candidate.of(LARGER, blocks.prepared.changed(fit=min(2 * fits, useful)), run)


def _trial(candidate: Candidate, short: float, whole: float | None) -> FitTrial:
    task_file = candidate.prepared.task_file
    return FitTrial(
        name=candidate.name,
        budget=task_file.fits or 0,
        density=density_of(candidate.prepared),
        dtype=task_file.dtype,
        short_loss=short,
        loss=whole,
    )


class _Losses:
    """Losses of candidates on validation data; those found before are in the journal."""

    def __init__(self, run: CompileRun) -> None:
        self._run = run
        reached = run.journal.read(_STAGE, lambda kept: {"losses"} == kept.keys())
        self._known: list[float] = [] if reached is None else reached.tensors["losses"].tolist()
        self._asked = 0

    def of(self, candidate: Candidate, called: str, part: float) -> float:
        """Train for a share of the steps, and measure."""
        if self._asked == len(self._known):
            journal = self._run.journal.part(_folder(called))
            weights = candidate.trained(self._run, journal, called, part)
            self._known.append(validation_loss(candidate, weights))
            kept = {"losses": torch.tensor(self._known, dtype=torch.float64)}
            self._run.journal.write(_STAGE, len(self._known), kept)
        self._asked += 1
        return self._known[self._asked - 1]


def _folder(called: str) -> str:
    return called.replace(" ", "-")


def validation_loss(candidate: Candidate, weights: TaskWeights) -> float:
    """Mean over the tasks of the loss of a validation example, with weights as pages hold them."""
    data, source = candidate.prepared.data, weights.source
    watched = validation_of(data, [*data], 1)
    assert watched is not None

    @lru_cache(maxsize=1)  # batches come task by task
    def held(task: str) -> dict[str, Tensor]:
        return sparse_weights(weights, candidate.chosen.masks, task)

    def error(task: str, batch: Batch) -> Tensor:
        model, kind = source.models[task], data[task].kind
        with evaluating(model):
            return loss(logits_with(model, held(task), batch, kind), batch.labels, kind)

    return watched.loss(error)


def held_out_of_training(data: Mapping[str, TaskData]) -> Mapping[str, TaskData]:
    """Tasks with validation data: those without get a tenth of their training rows, `ITEMS` at most."""
    return {task: of if of.validation else _divided(of) for task, of in data.items()}


def _divided(data: TaskData) -> TaskData:
    rows = range(len(data.train))
    held = {*random.Random(0).sample(rows, min(ITEMS, len(rows) // 10))}  # noqa: S311
    if not held:
        return replace(data, validation=data.train)
    train, kept = (tuple(data.train[at] for at in rows if (at in held) == out) for out in (False, True))
    return replace(data, train=train, validation=kept)


def _smallest_that_keeps(prepared: Prepared, run: CompileRun) -> Found:
    """Of `SPARSITIES`, the highest whose tasks lose at most `LOSS` of the dense model's metric on validation data."""
    checked = {task: validation(of) for task, of in prepared.data.items()}
    dense = {
        task: score_alone(prepared.source, task, of, partial(run.progress, f"validate dense {task}"))
        for task, of in checked.items()
    }
    for sparsity in SPARSITIES:
        with run.stage("align"):
            candidate = Candidate.of(BLOCKS, prepared.changed(sparsity=sparsity), run)
        called = f"sparsity {sparsity:g}"
        journal = run.journal.part(_folder(called))
        if sparsity == SPARSITIES[-1]:
            return Found(candidate, journal)
        with run.stage("try"):
            weights = candidate.trained(run, journal, called)
            scores = candidate.scores(weights, checked, run, called)
            lost = -fmean(gain(scores[task], dense[task]) for task in checked)
        _log.info("%s: tasks lose %.2f points on validation data", called, 100 * lost)
        if lost <= LOSS:
            return Found(candidate, journal)
    raise AssertionError("the last sparsity is always taken")

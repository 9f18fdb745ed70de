"""Which blocks each task keeps: one budget a task over all weights, above floors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from weightpager.compiler.alignment.problem import AlignmentProblem, Bools, Floats, Ints, gap_of
from weightpager.compiler.alignment.structure_aligner import align
from weightpager.compiler.data import Batch
from weightpager.compiler.model.dense_model import PagedWeightInfo
from weightpager.compiler.model.half_layers import HalfLayer, units_of
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.selection.experts import ExpertLayer, expert_layers, experts_kept, keeps_whole_experts
from weightpager.compiler.selection.half_layers import half_saliency
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.selection.saliency import FloatArray, normalised
from weightpager.compiler.training.loss import logits_with, loss
from weightpager.compiler.training.masks import Masks
from weightpager.progress import Progress


@dataclass(frozen=True)
class Subproblem:
    """A subproblem of the alignment. Its units are single blocks, or whole experts of equally many blocks.

    Attributes:
        problem: the alignment's problem over these units.
        units: paged weight → the unit of each of its blocks, or that of all of them.
        blocks: number of blocks in a unit, or in a row of the problem.
        rows: how many rows of the problem each unit is, by its size; None for one each.
    """

    problem: AlignmentProblem
    units: Mapping[str, npt.NDArray[np.int64] | int]
    blocks: float = 1
    rows: Ints | None = None

    def gathered(self, masks: Mapping[str, Bools]) -> Bools:
        """[rows, tasks]: True where a mask [blocks, tasks] of each of its weights has all of a unit."""
        tasks = next(iter(masks.values())).shape[1]
        gathered = np.ones((len(self.problem.saliency) if self.rows is None else len(self.rows), tasks), np.bool_)
        for name, units in self.units.items():
            gathered[units] &= masks[name].all(0) if isinstance(units, int) else masks[name]
        return gathered if self.rows is None else np.repeat(gathered, self.rows, axis=0)

    def whole(self, keep: Bools) -> Bools:
        """Masks [units, tasks] from those of rows: units that a task keeps a part of are kept or dropped.

        Those of which it keeps most come first, then those of which others do, as long as the budget lasts.
        """
        if self.rows is None:
            return keep
        starts = np.cumsum(self.rows) - self.rows
        shares = np.add.reduceat(keep.astype(np.float64), starts) / self.rows[:, None]  # [units, tasks]
        others, saliency = shares.mean(1), self.problem.saliency[starts]
        if np.isinf(self.problem.strength):  # one mask for all
            saliency = np.broadcast_to(saliency.mean(1, keepdims=True), saliency.shape)
        chosen = np.zeros(shares.shape, np.bool_)
        for task, left in enumerate(self.problem.budgets.tolist()):
            for unit in np.lexsort((-saliency[:, task], -others, -shares[:, task])):
                if self.rows[unit] <= left:
                    chosen[unit, task], left = True, left - int(self.rows[unit])
        return chosen


def parts(prepared: Prepared, switch_rate: Floats) -> list[Subproblem]:
    """The problems of a compile; saliency is comparable between tasks.

    Where whole experts are kept, there is one for each layer that has any, and what lies outside them is in none. A
    picture tower is a problem of its own. Where tasks share it, that is one mask for all: no price is too high for it.
    """
    source, task_file = prepared.source, prepared.task_file
    if keeps_whole_experts(source):
        return [*_of_experts(prepared, switch_rate)]
    if task_file.units.whole:
        return [_of_halves(prepared, units_of(source), task_file.sparsity_of, switch_rate)]
    language = _of_blocks(prepared, source.language, task_file.sparsity_of, task_file.alignment, switch_rate)
    if not source.tower:
        return [language]
    strength = float("inf") if source.shares_tower else task_file.alignment
    return [_of_blocks(prepared, source.tower, task_file.tower_sparsity_of, strength, switch_rate), language]


def spread(paged: Sequence[PagedWeightInfo], found: Sequence[tuple[Subproblem, Bools]], tasks: int) -> dict[str, Bools]:
    """Masks [blocks, tasks] of every paged weight from those of parts, [units, tasks]; what is in none is kept."""
    keep = {info.name: np.ones((info.grid.count, tasks), np.bool_) for info in paged}
    for part, chosen in found:
        for name, units in part.units.items():
            keep[name][:] = chosen[units]
    return keep


def _of_blocks(
    prepared: Prepared,
    paged: Sequence[PagedWeightInfo],
    sparsity_of: Callable[[str], float],
    strength: float,
    switch_rate: Floats,
) -> Subproblem:
    """One problem over the blocks of these weights, with a floor for each; experts of a layer share one."""
    task_file, names = prepared.task_file, [info.name for info in paged]
    density = np.array([1.0 - sparsity_of(task) for task in task_file.tasks])
    saliency = np.stack(
        [normalised(np.concatenate([prepared.saliency[task][name] for name in names])) for task in task_file.tasks], 1
    )
    ends = np.cumsum([info.grid.count for info in paged])
    problem = AlignmentProblem(
        saliency,
        budgets=np.maximum(1, np.round(density * len(saliency))).astype(np.int64),
        switch_rate=switch_rate,
        strength=strength,
        versions=_versions(prepared, paged),
        sizes=tuple(_sizes(prepared, paged)),
        evenness=prepared.evenness,
    )
    units = {info.name: np.arange(end - info.grid.count, end) for info, end in zip(paged, ends.tolist(), strict=True)}
    return Subproblem(problem, units)


def _sizes(prepared: Prepared, paged: Sequence[PagedWeightInfo]) -> Iterator[int]:
    """Blocks of each weight, or of a layer's experts together: a task may do without some of these."""
    layer_of = {
        name: layer.name for layer in expert_layers(prepared.source) for names in layer.experts for name in names
    }
    for _, group in groupby(paged, key=lambda info: layer_of.get(info.name, info.name)):
        yield sum(info.grid.count for info in group)


def _of_experts(prepared: Prepared, switch_rate: Floats) -> Iterator[Subproblem]:
    source, task_file = prepared.source, prepared.task_file
    infos = {info.name: info for info in source.paged}
    budgets = np.array([experts_kept(source, task) for task in task_file.tasks], np.int64)
    for layer in expert_layers(source):
        versions = [_versions(prepared, [infos[name] for name in names]) for names in layer.experts]
        problem = AlignmentProblem(
            np.stack([normalised(_of_each(layer, prepared.saliency[task])) for task in task_file.tasks], 1),
            budgets=budgets,
            switch_rate=switch_rate,
            strength=task_file.alignment,
            versions=np.stack([_numbered(of_expert) for of_expert in versions]),
            sizes=(len(layer.experts),),
        )
        units = {name: number for number, names in enumerate(layer.experts) for name in names}
        yield Subproblem(problem, units, sum(infos[name].grid.count for name in layer.experts[0]))


def _of_halves(
    prepared: Prepared, halves: Sequence[HalfLayer], sparsity_of: Callable[[str], float], switch_rate: Floats
) -> Subproblem:
    """One problem over half-layers, or layers, without floors; rows are as many blocks as the smallest has."""
    source, task_file = prepared.source, prepared.task_file
    infos, tasks = {info.name: info for info in source.paged}, [*task_file.tasks]
    blocks = np.array([half.blocks for half in halves])
    rows = np.maximum(1, np.round(blocks / blocks.min())).astype(np.int64)
    per_row = np.stack([half_saliency(prepared.saliency[task], halves) for task in tasks], 1) / rows[:, None]
    kept = np.array(
        [blocks.sum() - sparsity_of(task) * sum(info.grid.count for info in source.language) for task in tasks]
    )
    versions = [_numbered(_versions(prepared, [infos[name] for name in half.weights])) for half in halves]
    problem = AlignmentProblem(
        np.repeat(np.stack([normalised(each) for each in per_row.T], 1), rows, axis=0),
        budgets=np.clip(np.round(kept / blocks.sum() * rows.sum()), 0, rows.sum()).astype(np.int64),
        switch_rate=switch_rate,
        strength=task_file.alignment,
        versions=np.repeat(np.stack(versions), rows, axis=0),
    )
    units = {name: number for number, half in enumerate(halves) for name in half.weights}
    return Subproblem(problem, units, float(blocks.sum() / rows.sum()), rows)


def _of_each(layer: ExpertLayer, saliency: Mapping[str, FloatArray]) -> FloatArray:
    """[experts], the sum over an expert's blocks."""
    return np.array([sum(saliency[name].sum() for name in names) for names in layer.experts])


def _numbered(versions: Ints) -> Ints:
    """[tasks]: equal numbers where all versions [blocks, tasks] are."""
    return np.unique(versions, axis=1, return_inverse=True)[1].reshape(-1)


def _versions(prepared: Prepared, infos: Sequence[PagedWeightInfo]) -> Ints:
    weights = TaskWeights(prepared.source)
    return np.concatenate([weights.versions(info) for info in infos]).astype(np.int64)


class ChosenBlocks(NamedTuple):
    """All tasks' keep masks, and the duality gap of the alignment.

    Attributes:
        saliency: the saliency that the masks keep, relative to an average block of each task.
    """

    masks: Masks
    gap: float
    saliency: float


def choose_blocks(prepared: Prepared) -> ChosenBlocks:
    """Choose blocks by one budget a task over the blocks of all paged weights, above floors; or whole experts.

    A picture tower has a budget of its own.

    Which layers and projections lose more blocks follows from the saliency: with the same share dropped from each of
    them, the six-task model lost 1.8 points more after the same training (decision 10). Of experts every layer keeps as
    many, since what they add isn't comparable between layers.
    """
    paged, tasks = prepared.source.paged, tuple(prepared.task_file.tasks)
    rate = prepared.source.transitions.switch_rate()[-len(tasks) :, -len(tasks) :]  # without a base's tasks
    alignments = [(part, align(part.problem)) for part in parts(prepared, rate)]
    keep = spread(paged, [(part, part.whole(alignment.keep)) for part, alignment in alignments], len(tasks))
    if prepared.task_file.units.share is not None:
        keep = _within_halves(prepared, keep, rate)
    saliency = sum(part.blocks * float(part.problem.saliency[alignment.keep].sum()) for part, alignment in alignments)
    return ChosenBlocks(Masks(tasks, keep), gap_of([alignment for _, alignment in alignments]), saliency)


def _within_halves(prepared: Prepared, keep: dict[str, Bools], switch_rate: Floats) -> dict[str, Bools]:
    """The same masks without the half-layers, or layers, of the share that goes by these, and as many blocks.

    What it loses with them it keeps of the others, by saliency.
    """
    source, task_file = prepared.source, prepared.task_file
    share, names = task_file.units.share or 0.0, [info.name for info in source.language]
    part = _of_halves(prepared, units_of(source), lambda task: min(share, task_file.sparsity_of(task)), switch_rate)
    allowed = spread(source.paged, [(part, part.whole(align(part.problem).keep))], len(task_file.tasks))
    may, mask = (np.concatenate([of[name] for name in names]) for of in (allowed, keep))
    saliency = [np.concatenate([prepared.saliency[task][name] for name in names]) for task in task_file.tasks]
    total = np.sum(saliency, axis=0)
    for task, of_task in enumerate(saliency):
        missing = int((mask[:, task] & ~may[:, task]).sum())
        mask[:, task] &= may[:, task]
        free = np.flatnonzero(may[:, task] & ~mask[:, task])
        worth = total if np.isinf(task_file.alignment) else of_task
        mask[free[np.argsort(-worth[free], kind="stable")[:missing]], task] = True
    ends = np.cumsum([len(keep[name]) for name in names])[:-1]
    return keep | dict(zip(names, np.split(mask, ends), strict=True))


def of_whole(prepared: Prepared, units: Sequence[HalfLayer], kept: Bools) -> ChosenBlocks:
    """The masks of tasks that keep these half-layers, or layers, [units, tasks], and all of everything else."""
    tasks = tuple(prepared.task_file.tasks)
    keep = {info.name: np.ones((info.grid.count, len(tasks)), np.bool_) for info in prepared.source.paged}
    for half, of_half in zip(units, kept, strict=True):
        for name in half.weights:
            keep[name][:] = of_half
    return ChosenBlocks(Masks(tasks, keep), 0.0, 0.0)


HIGH = 0.5
"""Share of an even budget that a weight keeps at least where saliency alone isn't trusted."""

_ITEMS = 4
_MARGIN = 0.9
"""High floors must add so much less to the dense loss: what little saliency loses more, recovery wins back."""


def choose_evenness(prepared: Prepared, progress: Progress) -> float:
    """0, or `HIGH` if each task's own best blocks then lose less, on training data and before any recovery.

    Saliency foresees what a block's loss costs while all others are there. In encoders it may take nearly all of a
    weight away and be right; in decoders one query projection that has lost nine tenths makes nonsense of everything
    behind it. So it is tried on the dense model.
    """
    batches = {name: of_task.calibration(_ITEMS, _ITEMS) for name, of_task in prepared.data.items()}
    alone = prepared.changed(alignment=0.0)

    def tried(number: int, masks: Masks | None) -> float:
        mean_loss = _loss(prepared, masks, batches)
        progress("choose floors", number, 3)
        return mean_loss

    low, high = (
        tried(number, choose_blocks(replace(alone, evenness=evenness)).masks)
        for number, evenness in enumerate((0.0, HIGH), 1)
    )
    if high >= low:
        progress("choose floors", 3, 3)
        return 0.0
    dense = tried(3, None)
    return HIGH if max(0.0, high - dense) < _MARGIN * (low - dense) else 0.0


def _loss(prepared: Prepared, masks: Masks | None, batches: Mapping[str, Sequence[Batch]]) -> float:
    """Mean over tasks and batches; of the dense model without masks."""
    source, losses = prepared.source, []
    with torch.no_grad():
        for task, of_task in batches.items():
            model, kind = source.models[task], prepared.data[task].kind
            weights = {} if masks is None else masks.held(source, task)
            losses += [loss(logits_with(model, weights, batch, kind), batch.labels, kind) for batch in of_task]
    return float(torch.stack(losses).mean())

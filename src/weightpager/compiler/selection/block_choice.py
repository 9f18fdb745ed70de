"""Which blocks each task keeps: λ from what the user states, one budget a task over all weights, floors."""

from __future__ import annotations

import numpy as np

from weightpager.bundle.report.compile_report import FrontierPoint
from weightpager.compiler.alignment.problem import AlignmentProblem, Floats
from weightpager.compiler.alignment.structure_aligner import align
from weightpager.compiler.model.masks import Masks
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.selection.saliency import normalised
from weightpager.compiler.selection.wishes import Choice, fulfil, wish_of
from weightpager.compiler.task_file.file import TaskFile
from weightpager.progress import Progress
from weightpager.trace_file import read_trace
from weightpager.transitions import Transitions


def transitions_of(task_file: TaskFile) -> Transitions:
    """The task file's trace as a transition matrix; uniform without one."""
    tasks = tuple(task_file.tasks)
    if task_file.transitions is None:
        return Transitions.uniform(tasks)
    return Transitions.from_trace(tasks, read_trace(task_file.transitions, tasks))


def choose_alignment(prepared: Prepared, progress: Progress) -> tuple[Prepared, list[FrontierPoint]]:
    """The same with the alignment that the task file's ``max_switch`` or ``accuracy_loss`` leads to; what was tried.

    Raises:
        CompileError: what the task file asks for can't be had.
    """
    source = prepared.source
    wish = wish_of(source)
    if wish is None:
        return prepared, []

    def choose(strength: float) -> Choice:
        masks, _, kept = _align(prepared.changed(alignment=strength))
        return Choice(masks, kept)

    rate = transitions_of(source.task_file).switch_rate() * (1 - np.eye(len(source.task_file.tasks)))
    found, tried = fulfil(wish, source, prepared.data, rate, choose, progress)
    points = [
        FrontierPoint(
            alignment=point.strength if np.isfinite(point.strength) else None,
            switch_bytes=point.switch_bytes,
            loss=point.loss,
        )
        for point in tried
    ]
    return prepared.changed(alignment=found.strength), points


def choose_blocks(prepared: Prepared) -> tuple[Masks, float]:
    """The keep masks, and the duality gap: one budget a task over the blocks of all paged weights, above floors.

    Which layers and projections lose more blocks follows from the saliency: with the same share dropped from each of
    them, the six-task model lost 1.8 points more after the same training (decision 10).
    """
    masks, gap, _ = _align(prepared)
    return masks, gap


def alignment_problem(prepared: Prepared, switch_rate: Floats) -> AlignmentProblem:
    """One problem over the blocks of all paged weights; saliency is comparable between tasks."""
    source, task_file = prepared.source, prepared.source.task_file
    names = [info.name for info in source.paged]
    saliency = np.stack(
        [normalised(np.concatenate([prepared.saliency[task][name] for name in names])) for task in task_file.tasks], 1
    )
    density = np.array([1.0 - task_file.sparsity_of(task) for task in task_file.tasks])
    return AlignmentProblem(
        saliency,
        budgets=np.maximum(1, np.round(density * len(saliency))).astype(np.int64),
        switch_rate=switch_rate,
        strength=task_file.alignment,
        versions=np.concatenate([TaskWeights(source).versions(info) for info in source.paged]),
        sizes=tuple(info.grid.count for info in source.paged),
        evenness=prepared.evenness,
    )


def _align(prepared: Prepared) -> tuple[Masks, float, float]:
    """Masks, gap, and the saliency that the masks keep."""
    task_file, paged = prepared.source.task_file, prepared.source.paged
    problem = alignment_problem(prepared, transitions_of(task_file).switch_rate())
    found = align(problem)
    parts = np.split(found.keep, np.cumsum(problem.sizes)[:-1])
    keep = dict(zip([info.name for info in paged], parts, strict=True))
    return Masks(tuple(task_file.tasks), keep), found.gap, float(problem.saliency[found.keep].sum())

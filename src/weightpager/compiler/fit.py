"""A budget in place of density and dtype: the largest density that fits in the default dtype, unless all fits in more.

What fits is measured, not reckoned: a trial bundle is written, with the dense values under masks of the density, and
asked for its smallest budget. So all counts that an engine will hold. Of tables whose rows come on demand that is the
least: a row that isn't in memory costs a read, a block that isn't kept costs accuracy. Rows get what is left.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import torch

from weightpager.answers.score import Score
from weightpager.bundle import Bundle, BundleWriter
from weightpager.bundle.files.new_directory import scratch
from weightpager.bundle.format.low_rank import LowRank
from weightpager.bundle.report.compile_report import Fit, FitTrial, FrontierPoint
from weightpager.bundle.writer import storage_errors
from weightpager.compiler.data import TaskData
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo, parameters
from weightpager.compiler.model.task_weights import PrivateBlocks, TaskWeights
from weightpager.compiler.packing.plan import plan_bundle
from weightpager.compiler.packing.write import write_bundle
from weightpager.compiler.recovery.own_parameters import untie_own_vectors
from weightpager.compiler.resume.journal import CompileRun
from weightpager.compiler.selection.alignment_target import choose_alignment
from weightpager.compiler.selection.block_choice import choose_blocks
from weightpager.compiler.selection.experts import least_density
from weightpager.compiler.selection.prepared import Prepared, SaliencyOfTasks
from weightpager.compiler.training.masks import Masks, block_sums
from weightpager.config import format_enough, format_room
from weightpager.errors import CompileError
from weightpager.page_dtype import DEFAULT, PageDtype, block_bytes
from weightpager.runtime.budget import smallest_budget

LEAST = 0.05
"""Density below which nothing has been measured."""

_ROOMY: tuple[PageDtype, ...] = ("bfloat16", "int8")
"""Dtypes of more bits than the default, most first, each taken where all blocks fit."""
_CLOSE = 0.01  # of the budget may be left
_SPARE, _LEAST_SPARE = 0.02, 2048
"""Share of the budget that is left free before training, and the fewest bytes.

Training makes parameters differ that began equal, such as biases of heads. Each task then holds its own.
"""
_ROUGH, _EXACT = 2, 6  # trials, after the one at the least density
_LOWER = 0.99  # of a density that turned out not to fit


def fit_roughly(source: DenseModel, data: Mapping[str, TaskData], run: CompileRun) -> DenseModel:
    """Before anything is trained, the dense model with about the density and dtype that ``fit`` leads to, if stated.

    Raises:
        CompileError: not even the least density fits; says which budget would do.
    """
    if source.task_file.fits is None:
        return source
    unknown = dict.fromkeys(data, Score("accuracy", 0.0, 1))
    return _fit(Prepared(source, data, unknown, _energies(source)), run, _ROUGH, LEAST, _SPARE, _LEAST_SPARE).source


def fit_to_budget(prepared: Prepared, run: CompileRun) -> Prepared:
    """The tasks with the density and dtype that the task file's ``fit`` leads to, if it has one."""
    if prepared.task_file.fits is None:
        return prepared
    return _fit(prepared, run, _EXACT, LEAST / 2, 0.0)  # a budget that has been accepted must do


def choose_density_and_alignment(prepared: Prepared, run: CompileRun) -> tuple[Prepared, list[FrontierPoint]]:
    """The tasks with the density, dtype and alignment that the task file's limits lead to, and the alignments tried.

    The alignment changes a little what fits. So both are chosen in turn. From the second turn on the density can only
    fall, which ends the search.

    Raises:
        CompileError: as `fit_roughly` and `choose_alignment`.
    """
    prepared, frontier = choose_alignment(prepared, run.progress)
    found = fit_to_budget(prepared, run)
    while frontier and _density_and_dtype(found) != _density_and_dtype(prepared):
        prepared, frontier = choose_alignment(found, run.progress)
        found = _kept_or_lower(prepared, run)
    return found, frontier


def check_fit(prepared: Prepared, masks: Masks, run: CompileRun) -> None:
    """See that what ``keep`` led to fits, if a budget is stated beside it."""
    task_file = prepared.task_file
    if task_file.keep is None or task_file.fit is None:
        return
    needed = _budget_of_trial(prepared, run, masks)
    if needed > task_file.fit:
        raise CompileError(
            f"fit: expected at least {format_enough(needed)}, which keeping {task_file.keep:g} of the dense metric "
            f"takes, found {format_room(task_file.fit)}; give more, or keep less"
        )


def fit_of(prepared: Prepared, bundle: Bundle, run: CompileRun, trials: Sequence[FitTrial] = ()) -> Fit | None:
    """What was chosen and why, for the report of the bundle that came of it; None if density and dtype were stated."""
    task_file = prepared.task_file
    if task_file.fits is None:
        return None
    density, room, whole = density_of(prepared), format_room(task_file.fits), None
    if density == 1:
        why = f"{room} hold all blocks in {task_file.dtype}, so none is dropped"
    else:
        share = block_bytes(task_file.block, task_file.dtype) / block_bytes(task_file.block, _ROOMY[-1])
        why = (
            f"{room} hold {density:.0%} of a task's blocks in {task_file.dtype}, "
            f"or {density * share:.0%} in {_ROOMY[-1]}: more blocks are worth more than finer numbers"
        )
        whole = largest_useful(prepared, run)
    return Fit(
        budget=task_file.fits,
        bytes=smallest_budget(bundle),
        density=density,
        dtype=bundle.manifest.dtype,
        why=why,
        whole=whole,
        trials=list(trials),
    )


def largest_useful(prepared: Prepared, run: CompileRun) -> int | None:
    """The budget that holds all blocks; None where none is dropped."""
    if density_of(prepared) == 1:
        return None
    return _stated(_budget_of_trial(prepared.changed(sparsity=0.0), run), _SPARE, _LEAST_SPARE)


def largest(size: Callable[[float], int], budget: int, slope: float, trials: int, least: float) -> float | None:
    """The largest density that is known to fit; None if not even the least does.

    Args:
        size: bytes at a density; rises with it, not quite steadily.
        budget: bytes.
        slope: about the bytes that all blocks take; may be too small.
        trials: how often ``size`` may be asked for, beside ``least``.
        least: density, above 0.
    """
    density, taken = least, size(least)
    if taken > budget:
        return None
    for _ in range(trials):
        if density == 1 or budget - taken <= _CLOSE * budget:
            break
        tried = min(1.0, density + 0.99 * (budget - taken) / slope)
        needed = size(tried)
        slope = max(slope, (needed - taken) / (tried - density))
        if needed <= budget:
            density, taken = tried, needed
    return density


def _fit(
    prepared: Prepared, run: CompileRun, trials: int, least: float, spare: float, least_spare: int = 0
) -> Prepared:
    """``spare`` is the share of the budget that is left for what isn't known yet, ``least_spare`` the fewest bytes."""
    task_file = prepared.task_file
    assert task_file.fits is not None
    budget = min(math.floor((1 - spare) * task_file.fits), task_file.fits - least_spare)
    least = max(least, least_density(prepared.source))
    blocks, asked = sum(info.grid.count for info in prepared.source.paged), 0

    def size(density: float, dtype: PageDtype = DEFAULT) -> int:
        nonlocal asked
        asked += 1
        run.progress("find what fits", asked, max(asked, trials + 1))
        return _budget_of_trial(prepared.changed(sparsity=1 - density, dtype=dtype), run)

    for dtype in _ROOMY:
        if blocks * block_bytes(task_file.block, dtype) <= budget and size(1.0, dtype) <= budget:
            return prepared.changed(sparsity=0.0, dtype=dtype)
    density = largest(size, budget, blocks * block_bytes(task_file.block, DEFAULT), trials, least)
    if density is None:
        enough = format_enough(_stated(size(least), spare, least_spare))
        raise CompileError(
            f"fit: expected at least {enough}, which {least:.0%} of the blocks in {DEFAULT} and "
            f"what is always in memory take, found {format_room(task_file.fits)}; give more, or compile a smaller model"
        )
    return prepared.changed(sparsity=1 - density, dtype=DEFAULT)


def _stated(needed: int, spare: float, least_spare: int) -> int:
    """The budget to state so that what needs so many bytes fits beside what is left free."""
    return max(math.ceil(needed / (1 - spare)), needed + least_spare)


def _kept_or_lower(prepared: Prepared, run: CompileRun) -> Prepared:
    """The tasks as they are if they fit with their alignment, else with a density that is lower."""
    fit = prepared.task_file.fit
    if fit is None or _budget_of_trial(prepared, run) <= fit:
        return prepared
    found, lower = fit_to_budget(prepared, run), _LOWER * density_of(prepared)
    return found if density_of(found) <= lower else found.changed(sparsity=1 - lower)


def density_of(prepared: Prepared) -> float:
    """The share of blocks that a task keeps where all tasks keep as many."""
    task_file = prepared.task_file
    return 1 - task_file.sparsity_of(next(iter(task_file.tasks)))


def _density_and_dtype(prepared: Prepared) -> tuple[float, PageDtype]:
    """What ``fit`` decides on."""
    return density_of(prepared), prepared.task_file.dtype


def _budget_of_trial(prepared: Prepared, run: CompileRun, masks: Masks | None = None) -> int:
    """The smallest budget of a bundle of these settings, and a page a layer where recovery decides how it is packed."""
    masks = choose_blocks(prepared).masks if masks is None else masks
    with trial_bundle(prepared, _recovered(prepared, masks), masks, run) as bundle:
        unknown = bundle.manifest.layers if prepared.task_file.recover.trains_alone else 0
        return smallest_budget(bundle) + unknown * bundle.page_bytes


@contextmanager
def trial_bundle(prepared: Prepared, weights: TaskWeights, masks: Masks, run: CompileRun) -> Iterator[Bundle]:
    """A bundle of these values in a folder that is removed afterwards."""
    kept = run.journal.folder
    parent, prefix = (Path(gettempdir()), "weightpager-fit-") if kept is None else (kept.parent, f"{kept.name}-fit-")
    with scratch(parent, prefix, storage_errors) as folder:
        write_bundle(BundleWriter(folder), plan_bundle(prepared, weights, masks.keep))
        yield Bundle.open(folder)


def _recovered(prepared: Prepared, masks: Masks) -> TaskWeights:
    """Values that take as much memory as those that recovery will find."""
    source, spec = prepared.source, prepared.task_file.recover
    if not spec.trains_alone:
        return TaskWeights(source)
    source = replace(source, models=copy.deepcopy(source.models))
    private, low_rank = {}, {}
    for number, (task, model) in enumerate(source.models.items()):
        untie_own_vectors(source, task, pooler=False)
        with torch.no_grad():
            for name, tensor in parameters(model).items():
                if tensor.ndim == 1 and tensor.is_floating_point() and source.may_differ(name):
                    tensor.add_(number)  # so that no two tasks agree
        private[task] = {info.name: _private(prepared, masks, task, info) for info in source.own}
        low_rank[task] = {
            info.name: LowRank(
                np.zeros((spec.low_rank, info.grid.in_features), np.float32),
                np.zeros((info.grid.out_features, spec.low_rank), np.float32),
            )
            for info in source.own
            if spec.low_rank
        }
    return TaskWeights(source, private, low_rank)


def _private(prepared: Prepared, masks: Masks, task: str, info: PagedWeightInfo) -> PrivateBlocks:
    """The shared blocks of a weight that matter most to a task, as many as it will have of its own."""
    keep, grid = masks.keep[info.name], info.grid
    mine = keep[:, masks.tasks.index(task)]
    can = np.flatnonzero(mine & (keep.sum(1) > 1))
    wanted = int(prepared.task_file.recover.private_blocks * mine.sum())
    blocks = np.sort(can[np.argsort(-prepared.saliency[task][info.name][can], kind="stable")[:wanted]])
    return PrivateBlocks(blocks, torch.zeros(len(blocks), grid.block.rows, grid.block.cols))


def _energies(source: DenseModel) -> SaliencyOfTasks:
    """Something for masks to be chosen by while nothing has been measured: squares, differently drawn for each task."""
    energies: SaliencyOfTasks = {}
    for number, task in enumerate(source.models):
        drawn = np.random.default_rng(number)
        energies[task] = {
            info.name: block_sums(source.linear(task, info.name).weight.detach().square(), info.grid).double().numpy()
            * drawn.lognormal(size=info.grid.count)
            for info in source.paged
        }
    return energies

"""Tasks that bring a whole checkpoint: which of its values they share with others, and which stay their own.

A block is shared where its values agree: ‖own − theirs‖ ≤ tolerance · ‖theirs‖, Frobenius norms in float32, ``theirs``
the block that would be used instead. The model's own block is tried first, then those of earlier tasks in the task
file's order; so a block has one set of values per group of tasks that agree, and the same input gives the same groups.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weightpager.backends.torch.architecture import BASE
from weightpager.bundle.format.picture_tower import is_before_words
from weightpager.compiler.model.paged_weights import PagedWeightInfo, parameters, replace_tensors
from weightpager.compiler.model.parameter_format import ParameterFormat
from weightpager.errors import CompileError

Versions = npt.NDArray[np.int8]
"""[blocks, tasks]: tasks with the same number share a block's values."""

SHARED = -1
"""The version that the model itself has; others have the number of the first task with them."""

_Blocks = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)


def lay_over(
    models: Mapping[str, PreTrainedModel],
    checkpoints: Mapping[str, Mapping[str, Tensor]],
    paged: Sequence[PagedWeightInfo],
    tolerance: float,
    form: ParameterFormat,
) -> dict[str, Versions]:
    """Give the modules of tasks with a checkpoint its values, but where they agree with others those others'.

    Biases and norms are shared only where they are equal; embeddings and other resident matrices as a whole, within
    the tolerance of the relative difference, or they are the task's own in memory, of which a warning tells the bytes.
    The modules, all tasks' in their order over the model's own parameters, are changed in place.

    Returns:
        The versions of each paged weight of which a task has blocks of its own.
    """
    for task, checkpoint in checkpoints.items():
        _take_resident(models[task], checkpoint, task, {f"{info.name}.weight" for info in paged}, tolerance, form)
    versions: dict[str, Versions] = {}
    for info in paged:
        block_versions = _take_paged(models, checkpoints, info, tolerance)
        if (block_versions != SHARED).any():
            versions[info.name] = block_versions
    return versions


def group(
    base: _Blocks, own: Mapping[int, _Blocks], tasks: int, tolerance: float
) -> tuple[Versions, dict[int, _Blocks]]:
    """Which tasks share which blocks, and the values ``[blocks, elements]`` that each of ``own`` then uses.

    ``own`` has checkpoints' values by task number, in the order in which groups form.
    """
    versions = np.full((len(base), tasks), SHARED, np.int8)
    values: dict[int, _Blocks] = {}
    for task, blocks in own.items():
        used, version = blocks.copy(), np.full(len(blocks), task, np.int8)
        for leader, theirs in {SHARED: base, **own}.items():
            if leader == task:
                break
            leads = np.True_ if leader == SHARED else versions[:, leader] == leader
            joins = (version == task) & leads & _agree(blocks, theirs, tolerance)
            used[joins], version[joins] = theirs[joins], leader
        versions[:, task], values[task] = version, used
    return versions, values


def _agree(own: _Blocks, theirs: _Blocks, tolerance: float) -> npt.NDArray[np.bool_]:
    distance, size = (np.linalg.norm(blocks, axis=1) for blocks in (own - theirs, theirs))
    return np.asarray(distance <= tolerance * size)


def check_tower(
    models: Mapping[str, PreTrainedModel], shared: Mapping[str, Tensor], versions: Mapping[str, Versions]
) -> None:
    """Refuse a checkpoint with a picture tower, or connector, of its own where all tasks have the model's.

    Args:
        models: the tasks' modules, as `lay_over` leaves them.
        shared: the model's own parameters, by canonical name.
        versions: what `lay_over` gives.
    """
    paged = {f"{name}.weight" for name in versions}
    for number, (task, model) in enumerate(models.items()):
        named = [(name, tensor) for name, tensor in parameters(model).items() if is_before_words(name)]
        own = [name for name, tensor in named if tensor is not shared[name] and name not in paged]
        own += [name for name, of in versions.items() if is_before_words(name) and (of[:, number] != SHARED).any()]
        if own:
            raise CompileError(
                f"tasks.{task}.checkpoint: expected the model's picture tower and connector, which all tasks share, "
                f"found other values of {own[0]!r}; state 'vision: own', or share by a larger tolerance"
            )


def _take_paged(
    models: Mapping[str, PreTrainedModel],
    checkpoints: Mapping[str, Mapping[str, Tensor]],
    info: PagedWeightInfo,
    tolerance: float,
) -> Versions:
    name, numbers = f"{info.name}.weight", {task: number for number, task in enumerate(models)}
    of_tasks = {numbers[task]: _cut(info, checkpoints[task][name]) for task in models if task in checkpoints}
    base = _cut(info, parameters(next(iter(models.values())))[name])
    versions, values = group(base, of_tasks, len(models), tolerance)
    for task in checkpoints:
        number = numbers[task]
        if (versions[:, number] != SHARED).any():
            shape = (info.grid.rows, info.grid.cols, info.grid.block.rows, info.grid.block.cols)
            joined = info.grid.join(values[number].reshape(shape))
            _replace(models[task], name, torch.from_numpy(np.ascontiguousarray(joined)))
    return versions


def _take_resident(
    model: PreTrainedModel,
    theirs: Mapping[str, Tensor],
    task: str,
    paged: set[str],
    tolerance: float,
    form: ParameterFormat,
) -> None:
    for name, ours in parameters(model).items():
        if name in paged or not name.startswith(BASE) or torch.equal(ours, theirs[name]):
            continue
        if ours.ndim >= 2:
            if (theirs[name] - ours).detach().norm() <= tolerance * ours.detach().norm():
                continue
            text = "tasks.%s.checkpoint: %r differs from the model's: %d bytes of memory for this task alone"
            _log.warning(text, task, name, form.bytes_of(name, theirs[name]))
        _replace(model, name, theirs[name].detach())


def _replace(model: PreTrainedModel, name: str, values: Tensor) -> None:
    old = parameters(model)[name]
    replace_tensors(model, {id(old): nn.Parameter(values) if isinstance(old, nn.Parameter) else values})


def _cut(info: PagedWeightInfo, weight: Tensor) -> _Blocks:
    return info.grid.cut(weight.detach().numpy()).reshape(info.grid.count, -1).astype(np.float32)

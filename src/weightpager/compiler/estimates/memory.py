"""How much memory a compile will need beyond the model, told before hours are spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from weightpager.compiler.estimates.activations import activation_bytes
from weightpager.compiler.estimates.stages import Stages
from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.model.scratch import IN_MEMORY, Scratch
from weightpager.compiler.training.device import training_device
from weightpager.errors import CompileError
from weightpager.machine.memory import read_memory
from weightpager.nn import mixtures

_GRADIENT_AND_MOMENTS = 3
"""Copies of what is trained: its gradient, and Adam's two moments."""

_PASSES = 8
"""Most passes over the data of a calibration whose sums don't fit into memory together."""

_SMALLER = "take a smaller model"
_ADVICE = {
    "measure dense": "take a smaller calibration.max_length",
    "reorder": "set reorder: false",
    "controls": "set compare: none",
    "recover": "set recover: none",
}


def training_bytes(source: Source, batch: int, copies: int) -> int:
    """A rough upper estimate of what gradient steps take: gradients, two Adam moments, activations of one batch.

    Args:
        source: the dense model, which is in memory already.
        batch: texts or images in a batch.
        copies: of the model beside it.
    """
    return source.parameter_bytes * (_GRADIENT_AND_MOMENTS + copies) + _most_activations(source, batch)


def dense_training_bytes(source: Source) -> int:
    """What the training of the dense model takes."""
    return training_bytes(source, source.task_file.training.batch, copies=0)


def recover_bytes(source: Source) -> int:
    """What ``finetune`` takes: the sparse model, its best values so far, and paged weights under their masks.

    Controls are trained after recovery. The recovered model stays in memory while they are, so it counts once more
    (`waiting`).
    """
    spec = source.task_file.recover
    best, waiting = 1 if spec.patience else 0, 0 if source.task_file.compare == "none" else 1
    needed = training_bytes(source, spec.batch, copies=1 + best + waiting) + source.paged_bytes
    return max(needed, private_bytes(source)) if spec.trains_alone else needed


def private_bytes(source: Source) -> int:
    """What the training of one task alone takes: all that ``finetune`` does for tasks that are added to a bundle.

    Private blocks are trained in copies of a task's weights: what moves, what doesn't, and both together.
    """
    spec = source.task_file.recover
    copies = 3 + _GRADIENT_AND_MOMENTS + (1 if spec.patience else 0)
    return source.parameter_bytes + copies * source.paged_bytes + _most_activations(source, spec.batch)


def own_bytes(source: Source) -> int:
    """What the training of heads and vectors takes: all that added tasks train, on frozen weights.

    Unless they are fine-tuned, they are trained again in a copy of the model, under each task's masks.
    """
    file = source.task_file
    needed = _most_activations(source, file.training.batch)
    if file.recover.method == "finetune":
        return needed
    return needed + source.parameter_bytes + source.paged_bytes


def _most_activations(source: Source, batch: int) -> int:
    return max(activation_bytes(source, task, batch) for task in source.models)


@dataclass(frozen=True)
class Bound:
    """What a compile will take, training apart.

    Attributes:
        stages: bytes of each stage, the model's included where it is in memory.
        on_disk: bytes of what lies in the scratch and comes and goes as memory allows; 0 if all is in memory.
        sums: bytes that sums of calibration may take while they grow.
    """

    stages: Mapping[str, int]
    on_disk: int
    sums: int

    @property
    def most(self) -> tuple[str, int]:
        """The stage that takes most, and what it takes."""
        return max(self.stages.items(), key=lambda item: item[1])


def bound(source: Source, available: int | None, *, moves: bool, on_disk: bool, adds: bool = False) -> Bound:
    """What a compile will take.

    Args:
        source: the dense model.
        available: bytes that it may take, the model's included where that is in memory; None if unknown.
        moves: whether the model will be reordered.
        on_disk: whether the model lies in the scratch.
        adds: whether tasks are added to a bundle.
    """
    sums = source.paged_bytes
    stages = Stages(source, moves, adds, on_disk, sums)
    if on_disk and available is not None:
        sums = _room(sums, available - stages.gradients)
        stages = replace(stages, sums=sums)
    held = source.parameter_bytes + (len(source.models) + source.task_file.recover.refits) * source.paged_bytes
    return Bound(stages.bytes, held if on_disk else 0, sums)


def _room(sums: int, left: int) -> int:
    """Bytes for sums that grow in one pass, of ``left`` for them and the model on disk.

    The model has the other half: what must be read again for every batch takes longer than another pass.
    """
    return min(sums, max(sums // _PASSES, left // 2))


def place(source: Source, folder: Path | None, available: int | None, *, moves: bool) -> Scratch:
    """Where a compile holds its model: in memory, unless it doesn't fit there and nothing is trained.

    Args:
        source: the dense model, whose values aren't in memory yet.
        folder: for files; None if there may be none.
        available: bytes that it may take; None if unknown.
        moves: whether the model will be reordered.
    """
    file = source.task_file
    if folder is None or available is None or file.trained_tasks or file.recover.method == "finetune":
        return IN_MEMORY
    fits = bound(source, available, moves=moves, on_disk=False).most[1] <= available
    return IN_MEMORY if fits else Scratch(folder)


def check_memory(source: Source, *, adds: bool, moves: bool) -> Bound:
    """Refuse a compile that can't fit into the memory that is free; a GPU's isn't known.

    Args:
        source: the dense model.
        adds: whether tasks are added to a bundle, whose values stay.
        moves: whether the model will be reordered.

    Returns:
        What it will take.

    Raises:
        CompileError: a stage needs more.
    """
    available = read_memory().usable_bytes
    if training_device().type == "cpu":
        check_training(source, available, adds=adds)
    return check_stages(source, available, moves=moves, adds=adds)


def check_training(source: Source, available: int | None, *, adds: bool = False) -> None:
    """Refuse a compile whose training can't fit.

    Args:
        source: the dense model.
        available: bytes; None checks nothing.
        adds: whether tasks are added to a bundle, whose values stay.

    Raises:
        CompileError: a stage needs more.
    """
    file = source.task_file
    if file.trained_tasks:
        otherwise = f"{_SMALLER}, or tasks that bring a head"
        _check_batch(source, "training", own_bytes if adds else dense_training_bytes, available, otherwise)
    if file.recover.method == "finetune":
        _check_batch(source, "recover", private_bytes if adds else recover_bytes, available, _otherwise(source, adds))


def _otherwise(source: Source, adds: bool) -> str:
    """What takes less than ``finetune``, and isn't refused; experts can't be refitted."""
    if adds or any(map(mixtures, source.models.values())):
        return "set recover: none"
    return "set recover: closed-form, or none, which take less"


def check_stages(source: Source, available: int | None, *, moves: bool, adds: bool = False) -> Bound:
    """Refuse a compile of which some stage can't fit, training apart.

    Args:
        source: the dense model.
        available: bytes that it may take beside the model where that is in memory; None checks nothing.
        moves: whether the model will be reordered.
        adds: whether tasks are added to a bundle.

    Raises:
        CompileError: a stage needs more.
    """
    on_disk = source.scratch.folder is not None
    if available is not None and not on_disk:
        available += source.parameter_bytes

    def bound_of(other: Source) -> Bound:
        return bound(other, available, moves=moves, on_disk=on_disk, adds=adds)

    memory_bound = bound_of(source)
    for stage, needed in memory_bound.stages.items():
        if stage == "calibrate":
            _check_batch(source, "calibration", lambda other: bound_of(other).stages["calibrate"], available, _SMALLER)
        else:
            _check("memory", f"the stage {stage!r}, which takes", needed, available, _ADVICE.get(stage, _SMALLER))
    return memory_bound


def _check_batch(
    source: Source, section: str, needed: Callable[[Source], int], available: int | None, otherwise: str
) -> None:
    """Refuse a section's batch that doesn't fit; ``otherwise`` is the way out where the model alone doesn't."""
    size = needed(source)
    if available is None or size <= available:
        return
    images, batch = source.task_file.takes_images, getattr(source.task_file, section).batch
    if needed(_with_batch(source, section, 1)) <= available:
        advice = "take a smaller batch" + ("" if images else " or max_length")
    elif not images and needed(_with_batch(source, section, 0)) <= available:
        advice = "take a batch of 1 and a smaller max_length"
    else:
        advice = otherwise
    _check(f"{section}.batch", f"{batch} {'images' if images else 'texts'}, which need", size, available, advice)


def _with_batch(source: Source, section: str, batch: int) -> Source:
    file = source.task_file
    spec = getattr(file, section).model_copy(update={"batch": batch})
    return replace(source, task_file=file.model_copy(update={section: spec}))


def _check(key: str, found: str, needed: int, available: int | None, advice: str) -> None:
    if available is not None and needed > available:
        mib = 1 << 20
        raise CompileError(
            f"{key}: expected what fits into the {available // mib} MiB of free memory, "
            f"found {found} about {-(-needed // mib)} MiB; {advice}"
        )

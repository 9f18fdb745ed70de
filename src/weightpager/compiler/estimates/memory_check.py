"""Whether a compile fits into memory, and where it holds its model, told before hours are spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from weightpager.compiler.estimates.memory import Bound, bound
from weightpager.compiler.estimates.training_bytes import (
    dense_training_bytes,
    own_bytes,
    private_bytes,
    recover_bytes,
)
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.scratch import IN_MEMORY, Scratch
from weightpager.compiler.training.device import training_device
from weightpager.errors import CompileError
from weightpager.machine.memory import read_memory
from weightpager.nn import mixtures

_SMALLER = "take a smaller model"
_ADVICE = {
    "measure dense": "take a smaller calibration.max_length",
    "reorder": "set reorder: false",
    "controls": "set compare: none",
    "recover": "set recover: none",
}


def choose_scratch(source: DenseModel, folder: Path | None, available: int | None, *, reorders: bool) -> Scratch:
    """Where a compile holds its model: in memory, unless it doesn't fit there and nothing is trained.

    Args:
        source: the dense model, whose values aren't in memory yet.
        folder: for files; None if there may be none.
        available: bytes that it may take; None if unknown.
        reorders: whether the model will be reordered.
    """
    file = source.task_file
    if folder is None or available is None or file.trained_tasks or file.recover.method == "finetune":
        return IN_MEMORY
    fits = bound(source, available, reorders=reorders, on_disk=False).most[1] <= available
    return IN_MEMORY if fits else Scratch(folder)


def check_memory(source: DenseModel, *, adds: bool, reorders: bool) -> Bound:
    """Refuse a compile that can't fit into the memory that is free; a GPU's isn't known.

    Args:
        source: the dense model.
        adds: whether tasks are added to a bundle, whose values stay.
        reorders: whether the model will be reordered.

    Returns:
        What it will take.

    Raises:
        CompileError: a stage needs more.
    """
    available = read_memory().usable_bytes
    if training_device().type == "cpu":
        check_training(source, available, adds=adds)
    return check_stages(source, available, reorders=reorders, adds=adds)


def check_training(source: DenseModel, available: int | None, *, adds: bool = False) -> None:
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


def _otherwise(source: DenseModel, adds: bool) -> str:
    """What takes less than ``finetune``, and isn't refused; experts can't be refitted."""
    if adds or any(map(mixtures, source.models.values())):
        return "set recover: none"
    return "set recover: closed-form, or none, which take less"


def check_stages(source: DenseModel, available: int | None, *, reorders: bool, adds: bool = False) -> Bound:
    """Refuse a compile of which some stage can't fit, training apart.

    Args:
        source: the dense model.
        available: bytes that it may take beside the model where that is in memory; None checks nothing.
        reorders: whether the model will be reordered.
        adds: whether tasks are added to a bundle.

    Raises:
        CompileError: a stage needs more.
    """
    on_disk = source.scratch.folder is not None
    if available is not None and not on_disk:
        available += source.parameter_bytes

    def bound_of(other: DenseModel) -> Bound:
        return bound(other, available, reorders=reorders, on_disk=on_disk, adds=adds)

    memory_bound = bound_of(source)
    for stage, needed in memory_bound.stages.items():
        if stage == "calibrate":
            _check_batch(source, "calibration", lambda other: bound_of(other).stages["calibrate"], available, _SMALLER)
        else:
            _check("memory", f"the stage {stage!r}, which takes", needed, available, _ADVICE.get(stage, _SMALLER))
    return memory_bound


def _check_batch(
    source: DenseModel, section: str, needed: Callable[[DenseModel], int], available: int | None, otherwise: str
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


def _with_batch(source: DenseModel, section: str, batch: int) -> DenseModel:
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

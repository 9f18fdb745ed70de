"""What training takes, by what is trained."""

from __future__ import annotations

from weightpager.compiler.estimates.activations import activation_bytes
from weightpager.compiler.model.dense_model import DenseModel

_GRADIENT_AND_MOMENTS = 3
"""Copies of what is trained: its gradient, and Adam's two moments."""


def training_bytes(source: DenseModel, batch: int, copies: int) -> int:
    """A rough upper estimate of what gradient steps take: gradients, two Adam moments, activations of one batch.

    Args:
        source: the dense model, which is in memory already.
        batch: texts or images in a batch.
        copies: of the model beside it.
    """
    return source.parameter_bytes * (_GRADIENT_AND_MOMENTS + copies) + _most_activations(source, batch)


def dense_training_bytes(source: DenseModel) -> int:
    """What the training of the dense model takes."""
    return training_bytes(source, source.task_file.training.batch, copies=0)


def recover_bytes(source: DenseModel) -> int:
    """What ``finetune`` takes: the sparse model, its best values so far, and paged weights under their masks.

    Controls are trained after recovery. The recovered model stays in memory while they are, so it counts once more
    (`waiting`).
    """
    spec = source.task_file.recover
    best, waiting = 1 if spec.patience else 0, 0 if source.task_file.compare == "none" else 1
    needed = training_bytes(source, spec.batch, copies=1 + best + waiting) + source.paged_bytes
    return max(needed, private_bytes(source)) if spec.trains_alone else needed


def private_bytes(source: DenseModel) -> int:
    """What the training of one task alone takes: all that ``finetune`` does for tasks that are added to a bundle.

    Private blocks are trained in copies of a task's weights: what moves, what doesn't, and both together.
    """
    spec = source.task_file.recover
    copies = 3 + _GRADIENT_AND_MOMENTS + (1 if spec.patience else 0)
    return source.parameter_bytes + copies * source.paged_bytes + _most_activations(source, spec.batch)


def own_bytes(source: DenseModel) -> int:
    """What the training of heads and vectors takes: all that added tasks train, on frozen weights.

    Unless they are fine-tuned, they are trained again in a copy of the model, under each task's masks.
    """
    file = source.task_file
    needed = _most_activations(source, file.training.batch)
    if file.recover.method == "finetune":
        return needed
    return needed + source.parameter_bytes + source.paged_bytes


def _most_activations(source: DenseModel, batch: int) -> int:
    return max(activation_bytes(source, task, batch) for task in source.models)

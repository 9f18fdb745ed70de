"""A task's score on held-out data by torch alone: of the dense model, and of what is compared with a bundle."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from weightpager.answers.score import Score
from weightpager.bundle.format.manifest import FORMS
from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.training.device import autocast
from weightpager.compiler.training.evaluate import Model, evaluate
from weightpager.page_dtype import PageDtype
from weightpager.progress import StepProgress


def score_alone(source: DenseModel, task: str, data: TaskData, progress: StepProgress) -> Score:
    """`torch_score` of a task's module as it is."""
    return torch_score(source.models[task], data, source.task_file.dtype, progress)


def torch_score(model: Model, task: TaskData, dtype: PageDtype, progress: StepProgress) -> Score:
    """Score a module on held-out data.

    Where right answers are counted, matrices are multiplied in bfloat16 if that is faster on this machine, as in
    training. A text's likelihood would suffer from logits of eight bits.

    Args:
        model: to score.
        task: whose held-out data it is scored on.
        dtype: of the pages; with float32 nothing is rounded.
        progress: of the batches.

    Raises:
        ValueError: no label counts.
    """
    exact = dtype == "float32" or FORMS[task.kind].labels == "none"
    with nullcontext() if exact else autocast(torch.device("cpu")):
        return evaluate(model, task.held_out(), task.kind, progress, task.asked)

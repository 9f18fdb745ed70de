"""The metric of any torch model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from weightpager.answers.evaluate import evaluate as evaluate_logits
from weightpager.answers.model import Floats
from weightpager.answers.score import Score
from weightpager.bundle import TaskKind
from weightpager.compiler.data.batch import Batch
from weightpager.progress import Steps, silent


def evaluate(model: Callable[..., Any], batches: Sequence[Batch], kind: TaskKind, progress: Steps = silent) -> Score:
    """Score ``model``, anything that takes a batch's inputs and returns an object with ``logits``.

    A module is put in evaluation mode while it is scored.

    Raises:
        ValueError: no batch has a label that counts.
    """

    def logits(inputs: Mapping[str, Tensor]) -> Floats:
        found: Floats = model(**inputs).logits.float().cpu().numpy()
        return found

    with evaluating(model), torch.inference_mode():
        found = ((batch.inputs, batch.labels.cpu().numpy()) for batch in _counted(batches, progress))
        return evaluate_logits(logits, found, kind)


def _counted(batches: Sequence[Batch], progress: Steps) -> Iterator[Batch]:
    for done, batch in enumerate(batches, 1):
        yield batch
        progress(done, len(batches))


@contextmanager
def evaluating(model: Callable[..., Any]) -> Iterator[None]:
    """A module in evaluation mode, each part of it back in its own mode afterwards; anything else as it is."""
    training = [module for module in model.modules() if module.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True

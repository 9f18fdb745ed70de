"""The metric of any torch model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weightpager.answers.kinds import kind_of
from weightpager.answers.model import Floats
from weightpager.answers.score import Score
from weightpager.answers.score import evaluate as evaluate_answers
from weightpager.backends.torch.torch_model import TorchModel
from weightpager.bundle import TaskKind
from weightpager.compiler.data import Batch
from weightpager.progress import StepProgress, counted, silent
from weightpager.task_data.completions import Asked


@dataclass(frozen=True)
class Replaced:
    """A module that computes with other values.

    Attributes:
        weights: other values, by the names of its parameters and buffers; of the same shape and dtype.
    """

    module: nn.Module
    weights: Mapping[str, Tensor]

    def __call__(self, **inputs: Tensor) -> Any:
        """What the module gives with these values."""
        return functional_call(self.module, dict(self.weights), kwargs=inputs)

    @contextmanager
    def as_module(self) -> Iterator[nn.Module]:
        """The module with these values in it; nobody else may use it meanwhile. Its own are back afterwards."""
        named = dict([*self.module.named_parameters(), *self.module.named_buffers()])
        replaced = {name: named[name] for name in self.weights}
        before = {name: tensor.data for name, tensor in replaced.items()}
        try:
            for name, tensor in replaced.items():
                tensor.data = self.weights[name].detach()
            yield self.module
        finally:
            for name, tensor in replaced.items():
                tensor.data = before[name]


Model = nn.Module | Replaced


def evaluate(
    model: Model, batches: Sequence[Batch], kind: TaskKind, progress: StepProgress = silent, asked: Asked | None = None
) -> Score:
    """Score ``model``, which is put in evaluation mode meanwhile.

    Args:
        model: takes a batch's inputs and returns an object with ``logits``.
        batches: as `TaskData.held_out` gives them.
        kind: of the task.
        progress: told (batches done, batches in all).
        asked: what prompts are answered by; None where the metric is one of logits.

    Raises:
        ValueError: no batch has a label that counts.
    """
    module = model.module if isinstance(model, Replaced) else model
    if asked is not None:
        replaced = model if isinstance(model, Replaced) else Replaced(model, {})
        with evaluating(module), replaced.as_module() as own:
            reader = asked.tokenizer.pictures
            answering = TorchModel(own, None if reader is None else reader.pictures)
            answer = kind_of(kind).answering(answering, asked.tokenizer, asked.generation)
            given = (batch.arrays() for batch in counted(batches, progress))
            return evaluate_answers(answer, given, kind, asked.generation.metrics)

    def logits(inputs: Mapping[str, Tensor]) -> Floats:
        found: Floats = model(**inputs).logits.float().cpu().numpy()
        return found

    with evaluating(module), torch.no_grad():
        found = ((batch.inputs, batch.labels.cpu().numpy()) for batch in counted(batches, progress))
        return evaluate_answers(logits, found, kind)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A module in evaluation mode, each part of it back in its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True

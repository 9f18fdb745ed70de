"""Logits of tasks while they train: of dense models, some of whose weights are masked or otherwise replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from weightpager.bundle import TaskKind
from weightpager.compiler.data.batch import Batch
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.training.attention import attention
from weightpager.compiler.training.device import autocast
from weightpager.compiler.training.loss import counted_positions
from weightpager.compiler.training.masks import Masks, Rounded


def masked_logits(
    sparse: DenseModel, masks: Masks | None, task: str, batch: Batch, rounded: Rounded | None = None
) -> Tensor:
    """A task's logits, as `logits_with` finds them, under its masks if there are any.

    Gradients reach the module's own parameters.
    """
    weights = {} if masks is None else masks.parameters(sparse, task, sparse.paged, rounded)
    return logits_with(sparse.models[task], weights, batch, sparse.task_file.tasks[task].kind)


def logits_with(model: PreTrainedModel, weights: dict[str, Tensor], batch: Batch, kind: TaskKind) -> Tensor:
    """A module's logits with some of its parameters replaced, for `loss`: where texts are written, of what counts."""
    places = counted_positions(batch.labels, kind)
    head = None if places is None else model.get_output_embeddings()
    with autocast(model.device), attention(model.device, batch.tokens), _only_at(places, head):
        return cast(Tensor, functional_call(model, weights, kwargs=dict(batch.inputs)).logits)


@contextmanager
def _only_at(places: Tensor | None, head: nn.Module | None) -> Iterator[None]:
    """A head that computes at these places [texts, tokens] alone, and gives [places, vocabulary]."""
    if places is None or head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, given: (given[0][places],))
    try:
        yield
    finally:
        hook.remove()

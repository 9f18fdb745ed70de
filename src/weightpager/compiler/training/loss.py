"""What training makes smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import log_softmax, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from weightpager.answers.kinds import IGNORED, Loss, kind_of
from weightpager.bundle import TaskKind
from weightpager.bundle.format.manifest import FORMS
from weightpager.compiler.data import Batch
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.training.device import autocast
from weightpager.compiler.training.masks import Masks, Rounded

_ROWS = 64
"""Logits of so many texts or tokens at a time: 12 MB of a vocabulary of 49,152."""


def loss(logits: Tensor, labels: Tensor, kind: TaskKind, answers: Tensor | None = None, weight: float = 0.0) -> Tensor:
    """The mean of a kind's loss over the labels that count; zero if none does.

    Args:
        logits: as of `aligned`.
        labels: as well.
        kind: of the task.
        answers: a teacher's logits, of the same shape.
        weight: of the mean Kullback-Leibler divergence from the teacher; labels have the rest.
    """
    return _LOSSES[kind_of(kind).loss](logits, labels, kind, answers, weight)


def _cross_entropy(logits: Tensor, labels: Tensor, kind: TaskKind, answers: Tensor | None, weight: float) -> Tensor:
    ours, wanted = aligned(logits, labels, kind)
    theirs = None if answers is None else aligned(answers, labels, kind)[0]
    counted = wanted != IGNORED
    if not counted.all():
        ours, wanted = ours[counted], wanted[counted]
        theirs = None if theirs is None else theirs[counted]
    found: Tensor = _Loss.apply(ours, wanted, theirs, weight)  # type: ignore[no-untyped-call]
    return found


_LOSSES: Mapping[Loss, Callable[[Tensor, Tensor, TaskKind, Tensor | None, float], Tensor]] = {
    "cross entropy": _cross_entropy,
}


class _Loss(torch.autograd.Function):
    """The loss and its gradient, some rows at a time.

    A large vocabulary's logits don't fit into a processor's cache, and torch's own operators go over all of them
    about ten times. The gradient of a row is softmax(ours) - (1 - weight) onehot(wanted) - weight softmax(theirs).
    """

    @staticmethod
    def forward(ctx: Any, ours: Tensor, wanted: Tensor, theirs: Tensor | None, weight: float) -> Tensor:
        gradient = torch.empty_like(ours) if ctx.needs_input_grad[0] else None
        total, share = ours.new_zeros((), dtype=torch.float32), 1 / max(1, len(ours))
        for start in range(0, len(ours), _ROWS):
            rows = slice(start, start + _ROWS)
            places = wanted[rows, None]
            log_ours = log_softmax(ours[rows].float(), -1)
            total -= (1 - weight) * log_ours.gather(1, places).sum()
            answers = None
            if theirs is not None:
                log_theirs = log_softmax(theirs[rows].float(), -1)
                answers = log_theirs.exp()
                total += weight * log_theirs.sub_(log_ours).mul_(answers).sum()
            if gradient is not None:
                row_gradient = log_ours.exp_()
                row_gradient.scatter_add_(1, places, torch.full_like(places, weight - 1, dtype=row_gradient.dtype))
                if answers is not None:
                    row_gradient.sub_(answers, alpha=weight)
                gradient[rows] = row_gradient.mul_(share)
        ctx.gradient = gradient
        return total * share

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        return ctx.gradient * outer, None, None, None


def aligned(logits: Tensor, labels: Tensor, kind: TaskKind) -> tuple[Tensor, Tensor]:
    """Logits ``[N, C]`` and labels ``[N]`` that belong together; where texts are written, those that count alone.

    Args:
        logits: [texts, classes] or [texts, tokens, classes]; or ``[N, C]``, those of the `counted_positions` alone.
        labels: [texts] or [texts, tokens].
        kind: of the task.
    """
    if not FORMS[kind].writes:
        return logits.flatten(0, -2), labels.flatten()
    following = _following(labels)
    counted = following != IGNORED
    return (logits if logits.ndim == 2 else logits[counted]), following[counted]


def counted_positions(labels: Tensor, kind: TaskKind) -> Tensor | None:
    """Bool [texts, tokens]: the positions whose logits the loss looks at; None for all of them.

    A vocabulary's logits are most of a small decoder's work, and most tokens of a prompt with its answer need none.
    """
    return _following(labels) != IGNORED if FORMS[kind].writes else None


def _following(labels: Tensor) -> Tensor:
    """The label of each position's next one."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)


SHORT = 192
"""Tokens of a text up to which the gradient through attention is found faster in float32 (decision 10)."""


def attention(device: torch.device, tokens: Tensor | None) -> AbstractContextManager[Any]:
    """How modules that compute in bfloat16 attend while they learn.

    Args:
        device: of the module.
        tokens: ids [texts, tokens]; None where images are looked at.
    """
    short = tokens is not None and tokens.shape[1] <= SHORT
    learns = torch.is_grad_enabled() and torch.is_autocast_enabled(device.type)
    return _InFloat32() if short and learns and device.type == "cpu" else nullcontext()


class _InFloat32(TorchFunctionMode):
    """Fused attention takes and gives bfloat16, and computes in float32 between."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        wide = {name: _wide(value) for name, value in (kwargs or {}).items()}
        with torch.autocast("cpu", enabled=False):
            return func(*map(_wide, args), **wide).to(args[0].dtype)


def _wide(value: Any) -> Any:
    """A tensor of numbers in float32; all else, masks of yes and no too, as it is."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


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

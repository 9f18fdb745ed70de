"""The metric of a task, the same for a dense model, a masked one and an engine's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from weightpager.bundle.format.manifest import TaskKind
from weightpager.progress import Steps, silent

Metric = Literal["accuracy", "token accuracy", "perplexity"]


IGNORED = -100
"""The label of a position that is neither learned nor counted."""

METRICS: dict[TaskKind, Metric] = {
    "text-classification": "accuracy",
    "token-classification": "token accuracy",
    "language-modeling": "perplexity",
    "image-classification": "accuracy",
}


@dataclass(frozen=True)
class Batch:
    """Model inputs and labels.

    Texts are ``input_ids`` and ``attention_mask``, each ``[B, L]``; images are ``pixel_values``, ``[B, C, H, W]``.
    Labels are ``[B]`` where texts or images are classified, else ``[B, L]``. For language modeling they are the input
    ids; `aligned` shifts them.
    """

    inputs: dict[str, Tensor]
    labels: Tensor

    @property
    def items(self) -> int:
        """Texts, windows or images."""
        return len(self.labels)

    @property
    def tokens(self) -> Tensor | None:
        """Bool ``[B, L]``, False at padding; None for images, which have none."""
        mask = self.inputs.get("attention_mask")
        return None if mask is None else mask.bool()

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch({name: tensor.to(device) for name, tensor in self.inputs.items()}, self.labels.to(device))


@dataclass(frozen=True)
class Outcomes:
    """What each text, window or image came to, so that two models can be compared item by item.

    Attributes:
        sums: float64 ``[N]``: right answers; of a language model, nats.
        counts: int64 ``[N]``: labels that count.
    """

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    @classmethod
    def none(cls) -> Outcomes:
        """Of no item."""
        return cls(np.zeros(0), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Score:
    """A metric's mean over ``items``: texts, images (accuracy), labelled words (token accuracy) or predicted tokens.

    ``outcomes`` are those of each text, window or image, in the order of the batches.
    """

    metric: Metric
    value: float
    items: int
    outcomes: Outcomes = field(default_factory=Outcomes.none, compare=False, repr=False)

    @classmethod
    def of(cls, kind: TaskKind, outcomes: Outcomes) -> Score:
        """What a task of this kind has reached with these outcomes.

        Raises:
            ValueError: no label counts.
        """
        items = int(outcomes.counts.sum())
        if items == 0:
            raise ValueError("expected at least one label to evaluate, got none")
        mean = sum(outcomes.sums.tolist()) / items
        # torch's exp: where math.exp overflows, a hopeless model has infinite perplexity.
        value = torch.tensor(mean, dtype=torch.float64).exp().item() if kind == "language-modeling" else mean
        return cls(METRICS[kind], value, items, outcomes)

    @property
    def higher_is_better(self) -> bool:
        """False for perplexity."""
        return self.metric != "perplexity"


def aligned(logits: Tensor, labels: Tensor, kind: TaskKind) -> tuple[Tensor, Tensor]:
    """Logits ``[N, C]`` and labels ``[N]`` that belong together: a language model's predict the next token."""
    if kind == "language-modeling":
        # Labels move, logits stay: the gradient of a slice would be one more copy of a large vocabulary's.
        labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)
    return logits.flatten(0, -2), labels.flatten()


def loss(logits: Tensor, labels: Tensor, kind: TaskKind) -> Tensor:
    """Mean cross entropy over the labels that count; zero if none does."""
    logits, labels = aligned(logits, labels, kind)
    total = cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def evaluate(model: Callable[..., Any], batches: Sequence[Batch], kind: TaskKind, progress: Steps = silent) -> Score:
    """Score ``model``, anything that takes a batch's inputs and returns an object with ``logits``.

    A module is put in evaluation mode while it is scored.

    Raises:
        ValueError: no batch has a label that counts.
    """
    sums: list[float] = []
    counts: list[int] = []
    with evaluating(model), torch.inference_mode():
        for done, batch in enumerate(batches, 1):
            logits = model(**batch.inputs).logits
            found = _measure(logits, batch.labels, kind)
            sums += found[0]
            counts += found[1]
            progress(done, len(batches))
    return Score.of(kind, Outcomes(np.array(sums, np.float64), np.array(counts, np.int64)))


def _measure(logits: Tensor, labels: Tensor, kind: TaskKind) -> tuple[list[float], list[int]]:
    """Of each item, sum and count of what the metric averages: hits, or nats."""
    if kind == "language-modeling":
        # One window at a time: a float32 copy of all logits of a large vocabulary is the peak of an evaluation.
        parts = [aligned(logits[row : row + 1], labels[row : row + 1], kind) for row in range(len(labels))]
        nats = [cross_entropy(x.float(), y, ignore_index=IGNORED, reduction="sum").item() for x, y in parts]
        return nats, [int((y != IGNORED).sum()) for _, y in parts]
    counted = (labels != IGNORED).reshape(len(labels), -1)
    hits = (logits.argmax(-1) == labels).reshape(len(labels), -1) & counted
    return hits.sum(1).double().tolist(), counted.sum(1).tolist()


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

"""The metric of a task, the same for a dense model, a masked one and an engine's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from weightpager.answers.kinds import kind_of
from weightpager.answers.kinds.kind import IGNORED, Metric
from weightpager.bundle import TaskKind
from weightpager.progress import Steps, silent


@dataclass(frozen=True)
class Batch:
    """Model inputs and labels.

    Texts are ``input_ids`` and ``attention_mask``, each ``[B, L]``; images are ``pixel_values``, ``[B, C, H, W]``.
    Labels are ``[B]`` where texts or images are classified, else ``[B, L]``. For language modeling they are the input
    ids; its `Kind` shifts them.
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
        """Outcomes of no item."""
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
        own = kind_of(kind)
        return cls(own.metric, own.value(sum(outcomes.sums.tolist()) / items), items, outcomes)

    @property
    def higher_is_better(self) -> bool:
        """False for perplexity."""
        return self.metric != "perplexity"


def loss(logits: Tensor, labels: Tensor, kind: TaskKind) -> Tensor:
    """Mean cross entropy over the labels that count; zero if none does."""
    logits, labels = kind_of(kind).aligned(logits, labels)
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
            found = kind_of(kind).measured(logits, batch.labels)
            sums += found[0]
            counts += found[1]
            progress(done, len(batches))
    return Score.of(kind, Outcomes(np.array(sums, np.float64), np.array(counts, np.int64)))


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

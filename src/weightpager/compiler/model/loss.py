"""What training makes smaller."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from weightpager.answers.kinds import kind_of
from weightpager.answers.kinds.kind import IGNORED
from weightpager.bundle import TaskKind


def loss(logits: Tensor, labels: Tensor, kind: TaskKind) -> Tensor:
    """Mean cross entropy over the labels that count; zero if none does."""
    logits, labels = aligned(logits, labels, kind)
    total = cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def aligned(logits: Tensor, labels: Tensor, kind: TaskKind) -> tuple[Tensor, Tensor]:
    """Logits ``[N, C]`` and labels ``[N]`` that belong together."""
    if kind_of(kind).writes:
        # Labels move, logits stay: the gradient of a slice would be one more copy of a large vocabulary's.
        labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)
    return logits.flatten(0, -2), labels.flatten()

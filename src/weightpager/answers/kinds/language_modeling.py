"""Texts that are continued."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from weightpager.answers.kinds.kind import IGNORED, Kind, Prediction
from weightpager.answers.token_reader import TokenReader
from weightpager.answers.work import Generate, Generated, Outcome
from weightpager.bundle import TaskEntry


class LanguageModeling(Kind):
    """Continues a prompt; is measured by how well it predicts each next token."""

    metric = "perplexity"
    writes = True

    def read(self, reader: TokenReader, task: TaskEntry, given: str, max_new_tokens: int) -> Generate:  # noqa: ARG002
        """A prompt, never cut: a continuation of anything but its end would be no continuation."""
        return Generate(reader.prompt(given), max_new_tokens)

    def outcomes(self, logits: Tensor, works: Sequence[Generate]) -> list[Outcome]:
        """There are none of a single forward: `GenerationRun` continues texts."""
        raise NotImplementedError

    def prediction(self, task: TaskEntry, given: str, outcome: Generated) -> Prediction:  # noqa: ARG002 - no classes
        """The continuation."""
        return Prediction(given, outcome.text)

    def aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Each token's logits, and the next token."""
        # Labels move, logits stay: the gradient of a slice would be one more copy of a large vocabulary's.
        labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)
        return super().aligned(logits, labels)

    def measured(self, logits: Tensor, labels: Tensor) -> tuple[list[float], list[int]]:
        """Nats of each window."""
        # One window at a time: a float32 copy of all logits of a large vocabulary is the peak of an evaluation.
        parts = [self.aligned(logits[row : row + 1], labels[row : row + 1]) for row in range(len(labels))]
        nats = [cross_entropy(x.float(), y, ignore_index=IGNORED, reduction="sum").item() for x, y in parts]
        return nats, [int((y != IGNORED).sum()) for _, y in parts]

    def value(self, mean: float) -> float:
        """The perplexity."""
        # torch's exp: where math.exp overflows, a hopeless model has infinite perplexity.
        return torch.tensor(mean, dtype=torch.float64).exp().item()


KIND = LanguageModeling()

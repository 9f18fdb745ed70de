"""What has to be stated of a kind of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from weightpager.answers.generation.attention_cache import without_cache
from weightpager.answers.padded import pad_id, padded
from weightpager.answers.work import Outcome, Work
from weightpager.bundle import TaskEntry

Metric = Literal["accuracy", "token accuracy", "perplexity"]

IGNORED = -100
"""The label of a position that is neither learned nor counted."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one text or image.

    Attributes:
        text: the input, or the image's path.
        label: the likeliest class, the tagged words joined by spaces, or the generated continuation.
        score: probability of the class; None where there is no single one.
        tags: (word, tag) pairs of a token task.
    """

    text: str
    label: str
    score: float | None = None
    tags: tuple[tuple[str, str], ...] = ()


class Kind(ABC):
    """A kind of tasks; those on texts need no `batch` of their own.

    Attributes:
        metric: what held-out data is measured by.
        writes: whether its tasks continue texts, and so have no classes.
    """

    metric: ClassVar[Metric]
    writes: ClassVar[bool] = False

    @abstractmethod
    def read(self, reader: Any, task: TaskEntry, given: str, max_new_tokens: int) -> Work:
        """What one input asks of a task.

        Args:
            reader: a `TokenReader`, or for images an `ImageReader`.
            task: that reads it.
            given: a text, or the path of an image.
            max_new_tokens: of a continuation.

        Raises:
            BundleFormatError: the tokenizer knows words that the model doesn't.
            ImageError: the path leads to no image that can be used; it is named.
        """

    def encode(self, module: nn.Module, tokenizer: Any, works: Sequence[Any]) -> list[Outcome]:
        """The outcomes of works that are read together, and at once."""
        logits = module(**self.batch(module, tokenizer, works), **without_cache(module)).logits
        return self.outcomes(logits, works)

    def batch(self, module: nn.Module, tokenizer: Any, works: Sequence[Any]) -> dict[str, Tensor]:
        """The module's inputs."""
        return padded(module, [work.ids for work in works], pad_id(module, tokenizer), left=False)

    @abstractmethod
    def outcomes(self, logits: Tensor, works: Sequence[Any]) -> list[Outcome]:
        """What the module's outputs, [works, ...], say of each work."""

    @abstractmethod
    def prediction(self, task: TaskEntry, given: str, outcome: Any) -> Prediction:
        """An outcome in the task's own words."""

    def aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[N, C]`` and labels ``[N]`` that belong together."""
        return logits.flatten(0, -2), labels.flatten()

    def measured(self, logits: Tensor, labels: Tensor) -> tuple[list[float], list[int]]:
        """Of each item, sum and count of what the metric averages: here the hits."""
        counted = (labels != IGNORED).reshape(len(labels), -1)
        hits = (logits.argmax(-1) == labels).reshape(len(labels), -1) & counted
        return hits.sum(1).double().tolist(), counted.sum(1).tolist()

    def value(self, mean: float) -> float:
        """The metric, of the mean of what `measured` sums up."""
        return mean

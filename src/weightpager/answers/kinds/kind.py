"""What has to be stated of a kind of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from weightpager.answers.model import Floats, Inputs, TaskModel
from weightpager.answers.work import Work
from weightpager.bundle import Generation, TaskEntry
from weightpager.bundle.format.manifest import TextMetric
from weightpager.errors import shown

Metric = Literal["accuracy", "token accuracy", "perplexity"] | TextMetric

IGNORED = -100
"""The label of a position that is neither learned nor counted."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one text or image.

    Attributes:
        text: the input, the image's path (empty if it came without one), or the text of a conversation's last message.
        label: the likeliest class, the tagged words joined by spaces, or the generated continuation with the
            blanks around it.
        score: probability of the class, 0 to 1; None where there is no single class.
        tags: (word, tag) pairs of a token task.
        completion: the generated text, as ``label`` has it too; None for tasks that write none.
        tokens: that were generated, one that ends the text included; None for tasks that write none.
        truncated: whether the text was longer than the task's ``max_length``, so that only a part of it was read.
            Prompts and images are never cut.
    """

    text: str
    label: str
    score: float | None = None
    tags: tuple[tuple[str, str], ...] = ()
    completion: str | None = None
    tokens: int | None = None
    truncated: bool = False

    def __repr__(self) -> str:
        told = (each for each in fields(self) if each.name != "completion")  # which the label has, too
        stated = [(each.name, getattr(self, each.name)) for each in told if getattr(self, each.name) != each.default]
        return f"Prediction({', '.join(f'{name}={shown(value)}' for name, value in stated)})"


class Kind(ABC):
    """A kind of tasks.

    Attributes:
        metric: the metric of held-out data, where a task doesn't choose one.
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
            given: a text, or to a task on images what `ImageClassification.read` takes.
            max_new_tokens: of a continuation.

        Raises:
            BundleFormatError: the tokenizer knows words that the model doesn't.
            ImageError: it is no image that can be used.
        """

    @abstractmethod
    def prediction(self, task: TaskEntry, given: str, outcome: Any) -> Prediction:
        """An outcome in the task's own words."""

    def answering(
        self,
        model: TaskModel,
        tokenizer: Any,  # noqa: ARG002 - for kinds whose answers are texts
        generation: Generation | None,  # noqa: ARG002
    ) -> Callable[[Inputs], Any]:
        """Returns a function from a batch's inputs to what `measured` takes. By default: the model's logits.

        Args:
            model: of the task, which is active when it is called.
            tokenizer: of the model, a `Tokenizer`.
            generation: of the task, if it has one.
        """
        return model.logits

    def measured(self, found: Any, labels: Any, metrics: Sequence[TextMetric] = ()) -> tuple[list[Any], list[int]]:  # noqa: ARG002
        """Per-item sums and counts for the metric. By default: correct labels and counted labels.

        A task with several metrics has a list of sums for each item.

        Args:
            found: what the function of `answering` returns.
            labels: [items], or [texts, tokens].
            metrics: that the task chooses.
        """
        logits: Floats = found
        counted = (labels != IGNORED).reshape(len(labels), -1)
        hits = (logits.argmax(-1) == labels).reshape(len(labels), -1) & counted
        return hits.sum(1).astype(float).tolist(), counted.sum(1).tolist()

    def value(self, mean: float) -> float:
        """The metric's value, from the mean of the sums of `measured`."""
        return mean

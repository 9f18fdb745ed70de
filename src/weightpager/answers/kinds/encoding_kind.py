"""What has to be stated of a kind of tasks whose answers are read off the logits of one forward."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from weightpager.answers.kinds.kind import Kind
from weightpager.answers.model import Floats, Inputs, TaskModel
from weightpager.answers.query import pad_id, padded
from weightpager.answers.work import Outcome


class EncodingKind(Kind):
    """A kind whose inputs are read at once; those on texts need no `batch` of their own."""

    def encode(self, model: TaskModel, tokenizer: Any, works: Sequence[Any]) -> list[Outcome]:
        """The outcomes of works that are read together."""
        return self.outcomes(model.logits(self.batch(model, tokenizer, works)), works)

    def batch(self, model: TaskModel, tokenizer: Any, works: Sequence[Any]) -> Inputs:
        """The model's inputs."""
        return padded([work.ids for work in works], pad_id(model.vocab_size, tokenizer))

    @abstractmethod
    def outcomes(self, logits: Floats, works: Sequence[Any]) -> list[Outcome]:
        """What the logits, [works, ...], say of each work."""

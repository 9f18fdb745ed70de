"""Plain texts or image files in, a task's answers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightpager.answers.begin import begin
from weightpager.answers.kinds import kind_of
from weightpager.answers.kinds.kind import Prediction
from weightpager.answers.model import TaskModel
from weightpager.answers.token_reader import TokenReader
from weightpager.answers.work import Generate, Outcome, Work
from weightpager.bundle import TaskEntry
from weightpager.errors import ConfigError
from weightpager.readers.tokenizer import Tokenizer


@dataclass
class _Lone:
    """A query of somebody who waits until it is over."""

    work: Work
    cached: bool = False
    outcome: Outcome | None = None

    @property
    def over(self) -> bool:
        return self.outcome is not None

    def given_up(self, now: float) -> bool:  # noqa: ARG002 - whatever the time
        return self.over

    def more(self, text: str) -> None:
        """The whole is told at the end."""

    def done(self, outcome: Outcome) -> None:
        self.outcome = outcome


def predict(
    model: TaskModel, reader: Any, task: TaskEntry, inputs: Sequence[str], *, max_new_tokens: int = 32
) -> list[Prediction]:
    """Run a task's model on inputs, one at a time: a batch's padding would change the last bits of a result.

    Args:
        model: the task's, which is active.
        reader: the bundle's `Tokenizer`, or for images its `ImageReader`.
        task: whose answers are wanted.
        inputs: texts, or paths of images.
        max_new_tokens: of a continuation.

    Raises:
        ConfigError: a text has no tokens, or with its continuation more than the model can read.
        BundleFormatError: the tokenizer knows words that the model doesn't.
        ImageError: a path leads to no image that can be used; it is named.
    """
    kind, own = kind_of(task.kind), reader
    if not task.takes_images:
        own = TokenReader(reader, model.vocabulary)
    found = []
    for given in inputs:
        query = _Lone(kind.read(own, task, given, max_new_tokens))
        _check(query.work, given, model, reader)
        run = begin(task.kind, model, reader, [query])
        while not query.over:
            run.step(math.inf)
        found.append(kind.prediction(task, given, query.outcome))
    return found


def _check(work: Work, text: str, model: TaskModel, tokenizer: Tokenizer) -> None:
    if not work.tokens:
        raise ConfigError(f"expected a text with at least one token, found {text!r}")
    if not isinstance(work, Generate):
        return
    room, wanted = min(model.context, tokenizer.longest), work.max_new_tokens
    if work.tokens + wanted > room:
        raise ConfigError(
            f"expected at most {room} tokens, as the model can read, found {work.tokens} and {wanted} to be generated"
        )

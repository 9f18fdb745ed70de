"""Classes, tags and vectors: of a batch that is read at once, or of a long text in pieces."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from weightpager.answers.generation import GenerationRun
from weightpager.answers.kept import NOTHING_KEPT, Kept
from weightpager.answers.kinds import EncodingKind, kind_of
from weightpager.answers.model import TaskModel
from weightpager.answers.query import Query, Run, pad_id, padded
from weightpager.answers.work import Embed, Embedded, Generate, Outcome
from weightpager.bundle import TaskKind
from weightpager.readers.tokenizer import Tokenizer

Encode = Callable[[TaskModel, Any, Sequence[Any]], list[Outcome]]
"""The outcomes of works that are read together, by a model and a tokenizer."""


def embed(model: TaskModel, tokenizer: Tokenizer, works: Sequence[Embed]) -> list[Outcome]:
    """The mean over a text's tokens of the last hidden state below the task's head."""
    batch = padded([work.ids for work in works], pad_id(model.vocab_size, tokenizer))
    mask = batch["attention_mask"][..., None].astype(np.float32)
    means = (model.hidden(batch) * mask).sum(1) / np.maximum(mask.sum(1), 1)
    return [Embedded(tuple(row)) for row in means.tolist()]


@dataclass(frozen=True)
class EncodingRun:
    """Reads a batch at once, in one step. Implements `Run`."""

    encode: Encode
    model: TaskModel
    tokenizer: Any
    queries: Sequence[Query]

    def step(self, until: float) -> int:  # noqa: ARG002 - a forward isn't stopped
        """Compute the outcomes; no token is generated."""
        outcomes = self.encode(self.model, self.tokenizer, [query.work for query in self.queries])
        for query, outcome in zip(self.queries, outcomes, strict=True):
            query.done(outcome)
        return 0


class EmbeddingRun:
    """Finds the vector of one text that is too long to be read at once. Implements `Run`."""

    def __init__(self, model: TaskModel, query: Query, clock: Callable[[], float] = time.monotonic) -> None:
        self._query = query
        self._clock = clock
        self._pieces = model.pieces(np.array(query.work.ids, np.int64))
        self._sum: npt.NDArray[np.float32] | float = 0.0  # [width], once something is read

    def step(self, until: float) -> int:
        """Read more of the text, until a time; no token is generated."""
        while not self._query.expire(self._clock()):
            self._sum = self._sum + self._pieces.read_piece().sum(0)
            if self._pieces.over:
                mean = self._sum / len(self._query.work.ids)
                self._query.done(Embedded(tuple(np.asarray(mean).tolist())))
            if self._clock() >= until:
                break
        return 0


def begin(kind: TaskKind, model: TaskModel, tokenizer: Any, queries: Sequence[Query], kept: Kept = NOTHING_KEPT) -> Run:
    """Nothing is computed yet."""
    if isinstance(queries[0].work, Generate):
        return GenerationRun(model, tokenizer, queries, kept=kept)
    if queries[0].cached:
        assert len(queries) == 1  # the scheduler runs such a text alone
        return EmbeddingRun(model, queries[0])
    if isinstance(queries[0].work, Embed):
        return EncodingRun(embed, model, tokenizer, queries)
    encoding = cast(EncodingKind, kind_of(kind))  # works of other kinds are `Generate`
    return EncodingRun(encoding.encode, model, tokenizer, queries)

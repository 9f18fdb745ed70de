"""Classes, tags and vectors: of a batch that is read at once, or of a long text in pieces."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from weightpager.answers.generation.attention_cache import CACHE, new_cache, without_cache
from weightpager.answers.generation.forward_size import Activations
from weightpager.answers.padded import pad_id, padded
from weightpager.answers.query import Query
from weightpager.answers.work import Embed, Embedded, Outcome
from weightpager.readers.tokenizer import Tokenizer

Encode = Callable[[nn.Module, Any, Sequence[Any]], list[Outcome]]
"""The outcomes of works that are read together, by a module and a tokenizer."""


def embed(module: nn.Module, tokenizer: Tokenizer, works: Sequence[Embed]) -> list[Outcome]:
    """The mean over a text's tokens of the last hidden state below the task's head."""
    batch = padded(module, [work.ids for work in works], pad_id(module, tokenizer), left=False)
    base: Any = module.base_model
    hidden = base(**batch, **without_cache(base)).last_hidden_state.float()  # [texts, tokens, hidden]
    mask = batch["attention_mask"][..., None]
    means = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
    return [Embedded(tuple(row)) for row in means.tolist()]


@dataclass(frozen=True)
class EncodingRun:
    """Reads a batch at once; a `Run` of one step."""

    encode: Encode
    module: nn.Module
    tokenizer: Any
    queries: Sequence[Query]

    def step(self, until: float) -> int:  # noqa: ARG002 - a forward isn't stopped
        """Compute the outcomes; no token is generated."""
        outcomes = self.encode(self.module, self.tokenizer, [query.work for query in self.queries])
        for query, outcome in zip(self.queries, outcomes, strict=True):
            query.done(outcome)
        return 0


class EmbeddingRun:
    """Finds the vector of one text that is too long to be read at once; a `Run`."""

    def __init__(self, module: nn.Module, query: Query, clock: Callable[[], float] = time.monotonic) -> None:
        base: Any = module.base_model
        self._base = base
        self._query = query
        self._clock = clock
        self._ids = torch.tensor([query.work.ids], device=base.device)
        self._cache = new_cache(base.config)
        self._activations = Activations.of(base.config, base.dtype.itemsize)
        self._sum = torch.zeros(1, device=base.device)  # float32 [hidden], or [1]
        self._read = 0

    def step(self, until: float) -> int:
        """Read more of the text, until a time; no token is generated."""
        while not self._query.given_up(self._clock()):
            self._read_piece()
            if self._clock() >= until:
                break
        return 0

    def _read_piece(self) -> None:
        length = self._ids.shape[1]
        stop = self._read + self._activations.piece(1, self._read, length)
        found = self._base(
            input_ids=self._ids[:, self._read : stop],
            attention_mask=torch.ones_like(self._ids[:, :stop]),
            use_cache=True,
            **{CACHE: self._cache},
        )
        self._sum = self._sum + found.last_hidden_state[0].float().sum(0)
        self._read = stop
        if stop == length:
            self._query.done(Embedded(tuple((self._sum / length).tolist())))

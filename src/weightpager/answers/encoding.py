"""Classes, tags and vectors: of a batch that is read at once, or of a long text in pieces."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightpager.answers.generation.attention_cache import CACHE, new_cache, without_cache
from weightpager.answers.generation.forward_size import Activations
from weightpager.answers.padded import pad_id, padded
from weightpager.answers.steps import Query
from weightpager.answers.work import Classified, Embed, Embedded, Look, Outcome, Tag, Tagged, Work


def encode(module: nn.Module, tokenizer: Any, works: Sequence[Work]) -> Sequence[Outcome]:
    """The outcomes of works that are of one kind, none of them a `Generate`."""
    images = [work.pixels for work in works if isinstance(work, Look)]
    if images:
        return _classify(module, {"pixel_values": torch.stack(images).to(_device(module))})
    batch = padded(module, [work.ids for work in works], pad_id(module, tokenizer), left=False)
    tags = [work for work in works if isinstance(work, Tag)]
    if tags:
        return _tag(module, batch, tags)
    return _embed(module, batch) if isinstance(works[0], Embed) else _classify(module, batch)


class EncodingRun:
    """Reads a batch at once; `Steps` of it, of which there is one."""

    def __init__(self, module: nn.Module, tokenizer: Any, queries: Sequence[Query]) -> None:
        """Nothing has been read."""
        self._module = module
        self._tokenizer = tokenizer
        self._queries = queries

    def step(self, until: float) -> int:  # noqa: ARG002 - a forward isn't stopped
        """Compute the outcomes; no token is generated."""
        outcomes = encode(self._module, self._tokenizer, [query.work for query in self._queries])
        for query, outcome in zip(self._queries, outcomes, strict=True):
            query.done(outcome)
        return 0


class EmbeddingRun:
    """Finds the vector of one text that is too long to be read at once; `Steps` of a batch."""

    def __init__(self, module: nn.Module, query: Query, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing has been read; the model reads texts in pieces."""
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


def _classify(module: nn.Module, batch: dict[str, Tensor]) -> list[Classified]:
    """Probabilities of the task's classes."""
    logits = module(**batch, **without_cache(module)).logits  # [texts or images, classes]
    return [Classified(tuple(row)) for row in logits.float().softmax(-1).tolist()]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _tag(module: nn.Module, batch: dict[str, Tensor], texts: Sequence[Tag]) -> list[Tagged]:
    """A tag for every word, from its first token. Words that were cut off have none."""
    logits = module(**batch, **without_cache(module)).logits  # [texts, tokens, classes]
    best, choice = logits.float().softmax(-1).max(-1)
    return [_tagged(text, best[row], choice[row]) for row, text in enumerate(texts)]


def _tagged(text: Tag, best: Tensor, choice: Tensor) -> Tagged:
    first = [(word, place) for place, word in enumerate(text.starts) if word is not None]
    return Tagged(tuple((text.words[word], int(choice[place]), float(best[place])) for word, place in first))


def _embed(module: nn.Module, batch: dict[str, Tensor]) -> list[Embedded]:
    """The mean over a text's tokens of the last hidden state below the task's head."""
    base: Any = module.base_model
    hidden = base(**batch, **without_cache(base)).last_hidden_state.float()  # [texts, tokens, hidden]
    mask = batch["attention_mask"][..., None]
    means = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
    return [Embedded(tuple(row)) for row in means.tolist()]

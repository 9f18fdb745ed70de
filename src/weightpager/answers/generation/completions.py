"""Completions of a batch of prompts, for a caller that waits for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from weightpager.answers.generation.generation_run import GenerationRun
from weightpager.answers.model import Inputs, TaskModel
from weightpager.answers.query import LoneQuery
from weightpager.answers.work import Generate, Generated


def room_of(model: TaskModel, tokenizer: Any) -> int:
    """Tokens of a prompt and its continuation that a model reads at most."""
    return int(min(model.context, tokenizer.longest))


def completions(model: TaskModel, tokenizer: Any, inputs: Inputs, most: int) -> list[str]:
    """The greedy continuation of each prompt of a batch, up to a token that ends it or ``most`` tokens.

    They are read together, as far as the model has room for all of them, and computed as `weightpager run` and the
    server compute them. A continuation ends where the model can read no more.

    Args:
        model: whose task is active.
        tokenizer: of the model, a `Tokenizer`.
        inputs: ``input_ids`` and ``attention_mask``, int64 [texts, tokens]; padding may lie on either side.
        most: new tokens of each.
    """
    room = room_of(model, tokenizer)
    rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    works = [Generate(tuple(ids[mask != 0].tolist()), most).within(room) for ids, mask in rows]
    waiting = [LoneQuery(work, cached=True) for work in works]
    for together in _together(waiting, most):
        run = GenerationRun(model, tokenizer, together)
        while not all(query.over for query in together):
            run.step(math.inf)
    return [query.outcome.text for query in waiting if isinstance(query.outcome, Generated)]


def _together(queries: Sequence[LoneQuery], most: int) -> Iterator[Sequence[LoneQuery]]:
    """Queries that can run together: those with room for ``most`` tokens, and of the others those of equal length.

    A batch needs positions for texts that are over, too, as long as another one goes on.
    """

    def tokens(query: LoneQuery) -> int:
        assert isinstance(query.work, Generate)
        return query.work.tokens if query.work.max_new_tokens < most else 0

    return (list(each) for _, each in groupby(sorted(queries, key=tokens), tokens))

"""Completions of a batch of prompts, for a caller that waits for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from weightpager.answers.generation.generation_run import GenerationRun
from weightpager.answers.model import Inputs, TaskModel
from weightpager.answers.query import BlockingQuery
from weightpager.answers.work import Generate, Generated

CACHED_TOKENS = 2048
"""Tokens that the caches of prompts which run together may come to hold, unless a single text takes more.

It is a constant: what is free in memory may not change the last bits of an answer.
"""


def room_of(model: TaskModel, tokenizer: Any) -> int:
    """Tokens of a prompt and its continuation that a model reads at most."""
    return int(min(model.context, tokenizer.longest))


def completions(model: TaskModel, tokenizer: Any, inputs: Inputs, most: int) -> list[str]:
    """The greedy continuation of each prompt of a batch, up to a token that ends it or ``most`` tokens.

    They are read together, as far as the model and `CACHED_TOKENS` have room for all of them, and computed as
    `weightpager run` and the server compute them. A continuation ends where the model can read no more.

    Args:
        model: whose task is active.
        tokenizer: of the model, a `Tokenizer`.
        inputs: ``input_ids`` and ``attention_mask``, int64 [texts, tokens]; padding may lie on either side.
        most: new tokens of each.
    """
    room = room_of(model, tokenizer)
    rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    works = [Generate(tuple(ids[mask != 0].tolist()), most).within(room) for ids, mask in rows]
    waiting = [BlockingQuery(work, cached=True) for work in works]
    uniform_length = room if model.uniform_length is None else min(room, model.uniform_length)
    for queries in _together(waiting, most, uniform_length):
        run = GenerationRun(model, tokenizer, queries)
        while not all(query.over for query in queries):
            run.step(math.inf)
    return [query.outcome.text for query in waiting if isinstance(query.outcome, Generated)]


def _together(queries: Sequence[BlockingQuery], most: int, uniform_length: int) -> Iterator[Sequence[BlockingQuery]]:
    """Queries that can run together, within `CACHED_TOKENS`.

    Those with room for ``most`` tokens make one group. Of the others, each prompt length makes a group of its own: a
    text that is over still takes a position for every token that another one gets, and a long one may change how
    shorter ones are read.

    Args:
        queries: in any order.
        most: new tokens that a text gets where there is room.
        uniform_length: tokens of a prompt and its continuation. Prompts that stay within this number run together,
            whatever their lengths. Longer ones run only with prompts of the same length.
    """

    def group(query: BlockingQuery) -> int:
        return query.work.tokens if query.work.tokens + most > uniform_length else 0

    for _, each in groupby(sorted(queries, key=lambda query: query.work.tokens), group):
        yield from _batches(each)


def _batches(group: Iterable[BlockingQuery]) -> Iterator[Sequence[BlockingQuery]]:
    """A group in its order, the longest text last, as many at a time as caches may hold."""
    batch: list[BlockingQuery] = []
    for query in group:
        if batch and (len(batch) + 1) * _length(query) > CACHED_TOKENS:
            yield batch
            batch = []
        batch.append(query)
    yield batch


def _length(query: BlockingQuery) -> int:
    """Tokens of a prompt and its longest continuation."""
    assert isinstance(query.work, Generate)
    return query.work.tokens + query.work.max_new_tokens

"""Completions of a batch of prompts, for a caller that waits for all of them."""

from __future__ import annotations

import math
from typing import Any

from weightpager.answers.batches import Bounds, batches
from weightpager.answers.generation.generation_run import GenerationRun
from weightpager.answers.model import Inputs, TaskModel
from weightpager.answers.query import BlockingQuery
from weightpager.answers.work import Generate, Generated


def room_of(model: TaskModel, tokenizer: Any) -> int:
    """Tokens of a prompt and its continuation that a model reads at most."""
    return int(min(model.context, tokenizer.longest))


def uniform_length(model: TaskModel, tokenizer: Any) -> int:
    """Tokens of a text and its continuation up to which others of its batch are read as if alone."""
    room = room_of(model, tokenizer)
    return room if model.uniform_length is None else min(room, model.uniform_length)


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
    bounds = Bounds(uniform_length=uniform_length(model, tokenizer), cache=model.cache)
    for queries in batches(waiting, bounds):
        run = GenerationRun(model, tokenizer, queries)
        while not all(query.over for query in queries):
            run.step(math.inf)
    return [query.outcome.text for query in waiting if isinstance(query.outcome, Generated)]

"""A batch of prompts, completed by somebody who waits for all of them."""

from __future__ import annotations

import math
from typing import Any

from weightpager.answers.generation.generation_run import GenerationRun
from weightpager.answers.model import Inputs, TaskModel
from weightpager.answers.query import LoneQuery
from weightpager.answers.work import Generate, Generated


def completions(model: TaskModel, tokenizer: Any, inputs: Inputs, most: int) -> list[str]:
    """The greedy continuation of each prompt of a batch, up to a token that ends it or ``most`` tokens.

    They are read together, and computed as `weightpager run` and the server compute them.

    Args:
        model: whose task is active.
        tokenizer: of the model, a `Tokenizer`.
        inputs: ``input_ids`` and ``attention_mask``, int64 [texts, tokens]; padding may lie on either side.
        most: new tokens of each.
    """
    rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    waiting = [LoneQuery(Generate(tuple(ids[mask != 0].tolist()), most), cached=True) for ids, mask in rows]
    run = GenerationRun(model, tokenizer, waiting)
    while not all(query.over for query in waiting):
        run.step(math.inf)
    return [query.outcome.text for query in waiting if isinstance(query.outcome, Generated)]

"""A batch begins: which way its work is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from weightpager.answers.encoding import EmbeddingRun, EncodingRun
from weightpager.answers.generation.generation_run import GenerationRun
from weightpager.answers.steps import Query, Steps
from weightpager.answers.work import Generate


def begin(module: nn.Module, tokenizer: Any, queries: Sequence[Query]) -> Steps:
    """Nothing is computed yet.

    Args:
        module: of the task.
        tokenizer: the calling thread's own.
        queries: whose work is of one kind.
    """
    if isinstance(queries[0].work, Generate):
        return GenerationRun(module, tokenizer, queries)
    if queries[0].cached:
        return EmbeddingRun(module, queries[0])
    return EncodingRun(module, tokenizer, queries)

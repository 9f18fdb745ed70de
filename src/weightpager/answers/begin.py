"""How the work of a batch is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightpager.answers.encoding import EmbeddingRun, EncodingRun, embed
from weightpager.answers.generation.generation_run import GenerationRun
from weightpager.answers.kinds import kind_of
from weightpager.answers.kinds.encoding_kind import EncodingKind
from weightpager.answers.model import TaskModel
from weightpager.answers.query import Query, Run
from weightpager.answers.work import Embed, Generate
from weightpager.bundle import TaskKind


def begin(kind: TaskKind, model: TaskModel, tokenizer: Any, queries: Sequence[Query]) -> Run:
    """Nothing is computed yet.

    Args:
        kind: of the task.
        model: of the task, which is active while the batch has its steps.
        tokenizer: the calling thread's own.
        queries: whose work is of one kind.
    """
    if isinstance(queries[0].work, Generate):
        return GenerationRun(model, tokenizer, queries)
    if queries[0].cached:
        assert len(queries) == 1  # the scheduler runs such a text alone
        return EmbeddingRun(model, queries[0])
    if isinstance(queries[0].work, Embed):
        return EncodingRun(embed, model, tokenizer, queries)
    encoding = kind_of(kind)
    assert isinstance(encoding, EncodingKind)  # works of other kinds are `Generate`
    return EncodingRun(encoding.encode, model, tokenizer, queries)

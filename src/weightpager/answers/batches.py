"""Which queries of one caller run together: those of similar length, within bounds of memory and of padding."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from weightpager.answers.model import Activations, CacheSize, mostly_padding
from weightpager.answers.query import BlockingQuery
from weightpager.answers.work import Generate
from weightpager.config import stated_count

CACHED_TOKENS = 2048
"""Tokens that caches of prompts which run together may take room for, in whole blocks, unless a single text takes more.

It is a constant: what is free in memory may not change the last bits of an answer.
"""

PICTURES_TOGETHER = 16
"""Pictures of prompts that run together, whose pixels and features are in memory, unless a single prompt has more."""


@dataclass(frozen=True)
class Bounds:
    """How much runs together.

    Attributes:
        texts: texts or images of a batch, at most: a caller's ``batch_size``, and refused as such.
        uniform_length: tokens up to which a text, its continuation included, doesn't change how others of its batch are
            read. Longer ones run only with others that are longer, and prompts only with those of the same length.
        activations: memory that a forward takes, which bounds what is read at once; None for no bound.
        cache: what keys and values take, of which prompts that run together keep no more than `CACHED_TOKENS`.
    """

    texts: int = sys.maxsize
    uniform_length: float = math.inf
    activations: Activations | None = None
    cache: CacheSize = field(default_factory=CacheSize)

    def __post_init__(self) -> None:
        stated_count(self.texts, "batch_size")


ALONE = Bounds(texts=1)
"""Each text is read as if there were no other, so that its answer depends on it alone, bit for bit."""


def batches(queries: Sequence[BlockingQuery], bounds: Bounds) -> Iterator[list[BlockingQuery]]:
    """Queries that run together, the shortest first: padding is read, too, and waits until all of a batch are over."""
    most = max((query.work.max_new_tokens for query in queries if isinstance(query.work, Generate)), default=0)
    groups: dict[Hashable, list[BlockingQuery]] = {}
    for query in sorted(queries, key=lambda query: query.work.tokens):
        groups.setdefault(_group(query, most, bounds), []).append(query)
    for group in groups.values():
        batch: list[BlockingQuery] = []
        for query in group:
            if batch and not _fits(query, batch, bounds):
                yield batch
                batch = []
            batch.append(query)
        yield batch


def _group(query: BlockingQuery, most: int, bounds: Bounds) -> Hashable:
    """A key: queries of the same key can run together.

    A text that is over still takes a position for every token that another one gets, and a long one may change how
    shorter ones are read. So of prompts that leave no room for ``most`` tokens, each length is a group of its own.
    """
    work = query.work
    if isinstance(work, Generate):
        return work.kind, work.tokens if work.tokens + most > bounds.uniform_length else 0
    return work.kind, work.tokens > bounds.uniform_length, id(query) if query.cached else None


def _fits(query: BlockingQuery, batch: Sequence[BlockingQuery], bounds: Bounds) -> bool:
    work, texts = query.work, len(batch) + 1
    if texts > bounds.texts:
        return False
    if isinstance(work, Generate):
        pictures = sum(len(each.work.pictures) for each in (query, *batch) if isinstance(each.work, Generate))
        if work.pictures and pictures > PICTURES_TOGETHER:
            return False
        return bounds.cache.tokens(texts, work.tokens + work.max_new_tokens) <= CACHED_TOKENS
    if mostly_padding(texts, work.tokens, batch[0].work.tokens):
        return False
    return bounds.activations is None or bounds.activations.fit(texts, work.tokens, work.tokens)

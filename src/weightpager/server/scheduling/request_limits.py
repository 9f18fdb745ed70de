"""What a request's texts may ask for, and the policy that follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from weightpager.answers.kinds import kind_of
from weightpager.answers.model import ModelLimits
from weightpager.answers.work import Embed, Generate, Work
from weightpager.bundle import TaskEntry
from weightpager.engine import Engine
from weightpager.errors import RequestError
from weightpager.server.inputs.text_limit import TextLimit, default_limit
from weightpager.server.inputs.vocabulary import Vocabulary
from weightpager.server.scheduling.policy import Policy
from weightpager.server.scheduling.settings import Settings

_TEXTS = 8
"""Longest texts that caches hold at a time, where no part of the budget is reserved for caches."""


class RequestLimits:
    """Bounds that the settings, the bundle's tasks and the KV reserve set together."""

    def __init__(self, engine: Engine, settings: Settings, limits: ModelLimits, vocabulary: Vocabulary | None) -> None:
        """``limits`` are the engine's. ``vocabulary`` is the bundle's; None where its tasks read images."""
        self._engine = engine
        self._settings = settings
        self._vocabulary = vocabulary
        self._follow(limits)

    @property
    def policy(self) -> Policy:
        """The settings' policy, with the bounds that the model and the KV reserve set."""
        vocabulary = self._vocabulary
        policy = replace(self._settings.policy, activations=self._limits.activations, cache=self._cache)
        if vocabulary is None:
            return policy
        room = vocabulary.most_cached
        if room is None:
            longest = max(self.of(task).tokens for task in self._engine.bundle.tasks.values())
            room = self._cache.tokens(max(policy.batch, _TEXTS), longest + self._settings.most_new_tokens)
        return replace(policy, room=room, context=vocabulary.context, uniform_length=vocabulary.uniform_length)

    def of(self, task: TaskEntry) -> TextLimit:
        """What a text of a task may ask for. Those that write read it in pieces, if the model can."""
        in_pieces = kind_of(task.kind).writes and self._limits.in_pieces
        tokens = self._settings.most_text_tokens
        if tokens is None:
            context = None if self._vocabulary is None else self._vocabulary.context
            tokens = default_limit(context, task.max_length, in_pieces=in_pieces)
        return TextLimit(tokens, in_pieces, self._limits.activations)

    def check(self, task: TaskEntry, works: Sequence[Work]) -> None:
        """See that no text for a task is too long.

        Raises:
            RequestError: one is.
        """
        longest, most = max(len(work.ids) for work in works), self.of(task).tokens
        if longest > most:
            raise RequestError(
                f"expected at most {most} tokens a text, as the server's --max-text-tokens, found {longest}",
                code="context_length_exceeded",
            )
        for work in works:
            if self._vocabulary is not None and isinstance(work, Embed) and self.is_cached(task, work):
                self._vocabulary.check_kept(work.ids, "input")

    def is_cached(self, task: TaskEntry, work: Work) -> bool:
        """Whether its keys and values are kept."""
        return isinstance(work, Generate) or (isinstance(work, Embed) and self.of(task).cached(len(work.ids)))

    def is_long(self, work: Work) -> bool:
        """Whether the model reads it in another way than short texts."""
        uniform_length = math.inf if self._vocabulary is None else self._vocabulary.uniform_length
        return len(work.ids) > uniform_length

    def renew(self) -> None:
        """Follow the bundle, which was loaded anew: its tasks may be others, or compute in a wider dtype."""
        self._follow(self._engine.limits)

    def _follow(self, limits: ModelLimits) -> None:
        self._limits, self._cache = limits, self._engine.cache_size()
        reserve = self._engine.report().memory.kv_reserve
        if self._vocabulary is not None and reserve:
            self._vocabulary.most_cached = self._cache.within(reserve)

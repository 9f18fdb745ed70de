"""What a request's texts may ask for, and the policy that follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from weightpager.answers.kinds import kind_of
from weightpager.answers.model import ModelLimits
from weightpager.answers.work import Embed, Generate, Work
from weightpager.engine import Engine
from weightpager.errors import RequestError
from weightpager.server.inputs.text_limit import TextLimit, default_limit
from weightpager.server.inputs.vocabulary import Vocabulary
from weightpager.server.scheduling.policy import Policy
from weightpager.server.scheduling.settings import Settings


class RequestLimits:
    """Bounds that the settings, the bundle's tasks and the KV reserve set together."""

    def __init__(self, engine: Engine, settings: Settings, limits: ModelLimits, vocabulary: Vocabulary | None) -> None:
        """``limits`` are the engine's. ``vocabulary`` is the bundle's; None where its tasks read images."""
        self._engine = engine
        self._settings = settings
        self._vocabulary = vocabulary
        self._limit = self._text_limit(limits)

    @property
    def policy(self) -> Policy:
        """The settings' policy, with the bounds that the model and the KV reserve set."""
        vocabulary, limit = self._vocabulary, self._limit
        policy = replace(self._settings.policy, activations=limit.activations)
        if vocabulary is None:
            return policy
        room = vocabulary.most_cached
        if room is None:
            room = limit.room(policy.batch, self._settings.most_new_tokens)
        return replace(policy, room=room, context=vocabulary.context, uniform_length=vocabulary.uniform_length)

    def check(self, works: Sequence[Work]) -> None:
        """See that no text is too long.

        Raises:
            RequestError: one is.
        """
        longest, most = max(len(work.ids) for work in works), self._limit.tokens
        if longest > most:
            raise RequestError(
                f"expected at most {most} tokens a text, as the server's --max-text-tokens, found {longest}",
                code="context_length_exceeded",
            )
        for work in works:
            if self._vocabulary is not None and isinstance(work, Embed) and self.is_cached(work):
                self._vocabulary.check_kept(work.ids, "input")

    def is_cached(self, work: Work) -> bool:
        """Whether its keys and values are kept."""
        return isinstance(work, Generate) or (isinstance(work, Embed) and self._limit.cached(len(work.ids)))

    def is_long(self, work: Work) -> bool:
        """Whether the model reads it in another way than short texts."""
        uniform_length = math.inf if self._vocabulary is None else self._vocabulary.uniform_length
        return len(work.ids) > uniform_length

    def renew(self) -> None:
        """Follow the bundle, which was loaded anew: its tasks may be others, or compute in a wider dtype."""
        limits = self._engine.limits
        self._limit = self._text_limit(limits)
        if self._vocabulary is not None:
            self._vocabulary.most_cached = reserved_tokens(self._engine, limits)

    def _text_limit(self, limits: ModelLimits) -> TextLimit:
        tasks = self._engine.bundle.tasks
        writes = all(kind_of(task.kind).writes for task in tasks.values())
        in_pieces = writes and limits.in_pieces
        tokens = self._settings.most_text_tokens
        if tokens is None:
            context = None if self._vocabulary is None else self._vocabulary.context
            tokens = default_limit(context, (task.max_length for task in tasks.values()), in_pieces=in_pieces)
        return TextLimit(tokens, in_pieces, limits.activations)


def reserved_tokens(engine: Engine, limits: ModelLimits) -> int | None:
    """Tokens that the budget's KV reserve holds; None without a reserve: the budget then doesn't cover caches."""
    reserve = engine.report().memory.kv_reserve
    return reserve // limits.cache_bytes if reserve else None

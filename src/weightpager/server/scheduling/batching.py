"""Which requests may begin, and which of them together: pure."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from weightpager.answers.generation.forward_size import PIECE
from weightpager.server.scheduling.policy import Policy

HEAVY = 4 * PIECE
"""Tokens above which a prompt is heavy: reading it takes so long that only one batch of such is under way at a time."""

_MOST_READ = 32 * PIECE
"""Tokens of a batch's prompts, padding included, unless it is of one."""


@dataclass(frozen=True)
class Waiting:
    """One request in the queue; only those of the same task and ``kind`` can run together.

    Attributes:
        task: that it is for.
        arrived: by any clock.
        kind: what it can run together with.
        prompt: tokens to be read.
        fresh: at most as many are to be generated.
        cached: whether keys and values are kept for it, and it is done in steps; else it is read at once.
    """

    task: str
    arrived: float
    kind: Hashable = None
    prompt: int = 0
    fresh: int = 0
    cached: bool = True

    @property
    def heavy(self) -> bool:
        """Whether others of its sort must have ended before it begins."""
        return self.cached and self.prompt > HEAVY


@dataclass(frozen=True)
class Started:
    """A batch that has begun and takes more steps.

    Attributes:
        task: that it is for.
        arrived: its oldest request.
        ready: when its latest step ended.
        tokens: that its caches may hold.
        heavy: whether its prompts are.
    """

    task: str
    arrived: float
    ready: float
    tokens: int = 0
    heavy: bool = False


def beginnable(waiting: Sequence[Waiting], started: Sequence[Started], now: float, policy: Policy) -> list[int]:
    """Places of the requests that may begin now; all of them while nothing is under way.

    Who has waited for longer than ``patience`` begins as soon as caches have room for it, and until then nobody who
    came later and needs a cache.
    """
    found, crowded = [], False
    for place, request in enumerate(waiting):
        late = now - request.arrived >= policy.patience
        if not request.cached:
            found.append(place)
        elif not crowded and _has_place(request, started, policy, late=late):
            if not started or request.prompt + request.fresh <= _free(started, policy):
                found.append(place)
            else:
                crowded = late
    return found


def together(
    waiting: Sequence[Waiting], places: Sequence[int], started: Sequence[Started], policy: Policy
) -> tuple[int, ...]:
    """Of requests of one task and kind: the first, and as many others as can run with it, in the order of arrival."""
    first = waiting[places[0]]
    free = _free(started, policy)
    found, sizes = [places[0]], _Sizes(first.prompt, first.fresh, first.prompt)
    for place in places[1:]:
        if len(found) == policy.batch:
            break
        grown = sizes.with_one(waiting[place])
        if grown.fit(len(found) + 1, first, free, policy):
            found.append(place)
            sizes = grown
    return tuple(found)


def held(batch: Sequence[Waiting]) -> int:
    """Tokens that a batch's caches may come to hold: what is shorter is padded, and stays until all have ended."""
    if not batch[0].cached:
        return 0
    return len(batch) * (max(one.prompt for one in batch) + max(one.fresh for one in batch))


@dataclass(frozen=True)
class _Sizes:
    """Of a batch's prompts: the longest, the most that any is continued by, and the shortest."""

    prompt: int
    fresh: int
    shortest: int

    def with_one(self, request: Waiting) -> _Sizes:
        fresh, shortest = max(self.fresh, request.fresh), min(self.shortest, request.prompt)
        return _Sizes(max(self.prompt, request.prompt), fresh, shortest)

    def fit(self, texts: int, first: Waiting, free: float, policy: Policy) -> bool:
        """Whether so many texts, of one kind, make a batch."""
        context = math.inf if policy.context is None else policy.context
        if policy.together is not None and first.prompt <= policy.together:  # as all others are
            context = min(context, policy.together)
        if self.prompt + self.fresh > context:
            return False
        padded = texts * self.prompt
        if padded > PIECE and self.prompt > 2 * self.shortest:  # somebody would be mostly padding
            return False
        if first.cached:
            return padded <= _MOST_READ and texts * (self.prompt + self.fresh) <= free
        return policy.activations is None or policy.activations.fit(texts, self.prompt, self.prompt)


def _has_place(request: Waiting, started: Sequence[Started], policy: Policy, *, late: bool) -> bool:
    if request.heavy:
        return not any(run.heavy for run in started)
    return late or sum(run.task == request.task and not run.heavy for run in started) < policy.runs


def _free(started: Sequence[Started], policy: Policy) -> float:
    """Tokens that caches have room for."""
    return math.inf if policy.room is None else policy.room - sum(run.tokens for run in started)

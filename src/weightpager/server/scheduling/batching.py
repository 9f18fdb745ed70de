"""Which requests may begin, and which of them begin together. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

from weightpager.answers.batches import PICTURES_TOGETHER
from weightpager.answers.model import PIECE, mostly_padding
from weightpager.server.scheduling.settings import NO_LIMITS, BatchLimits, Policy

HEAVY = 8 * PIECE
"""Tokens above which a prompt is heavy. Reading one takes long: only one batch of them is under way at a time."""

_MOST_READ = 64 * PIECE
"""Tokens that a batch's prompts may have, padding included. A batch of one prompt may have more."""


@dataclass(frozen=True)
class Waiting:
    """One request in the queue. Requests run together only if their task and ``kind`` are the same.

    Attributes:
        arrived: the time when it came, by any clock.
        kind: a key that is equal for requests that can run together.
        prompt: number of tokens to read.
        new_tokens: number of tokens to generate, at most.
        cached: True if its keys and values are kept and it is done in steps, False if it is read at once.
        pictures: number of pictures in the prompt.
        limits: of its task's bundle.
    """

    task: str
    arrived: float
    kind: Hashable = None
    prompt: int = 0
    new_tokens: int = 0
    cached: bool = True
    pictures: int = 0
    limits: BatchLimits = NO_LIMITS

    @property
    def heavy(self) -> bool:
        return self.cached and self.prompt > HEAVY


@dataclass(frozen=True)
class Started:
    """A batch that has begun and takes more steps.

    Attributes:
        arrived: the time when its oldest request came.
        ready: the time when its latest step ended.
        tokens: number of tokens that its caches may come to hold.
        heavy: whether one of its requests is heavy.
        bundle: its task's.
    """

    task: str
    arrived: float
    ready: float
    tokens: int = 0
    heavy: bool = False
    bundle: str = ""


def beginnable(
    waiting: Sequence[Waiting], started: Sequence[Started], now: float, policy: Policy, barred: Collection[str] = ()
) -> list[int]:
    """Places of the requests that may begin now. While nothing is under way, all of them may.

    A request that has waited for ``patience`` is late. A late request for which its bundle's caches have no room holds
    back all later requests to that bundle that need a cache, until there is room. One whose task is barred holds back
    those to all bundles, until what is under way has ended.

    Args:
        waiting: in the order of arrival.
        started: what is under way.
        now: by their clock.
        policy: how they are grouped.
        barred: tasks that memory has no room for beside what is under way.
    """
    found: list[int] = []
    crowded: set[str] = set()
    closed = False
    for place, request in enumerate(waiting):
        late = now - request.arrived >= policy.patience
        if started and request.task in barred:
            closed = closed or late
        elif not request.cached:
            found.append(place)
        elif not closed and request.limits.bundle not in crowded and _has_place(request, started, policy, late=late):
            if not started or held([request]) <= _free(started, request.limits):
                found.append(place)
            elif late:
                crowded.add(request.limits.bundle)
    return found


def largest_batch(
    waiting: Sequence[Waiting], places: Sequence[int], started: Sequence[Started], policy: Policy
) -> tuple[int, ...]:
    """Which of these places, of one task and kind, begin together: the first one, and as many as can join it."""
    first = waiting[places[0]]
    free = _free(started, first.limits)
    found, sizes = [places[0]], _Sizes.of(first)
    for place in places[1:]:
        if len(found) == policy.batch:
            break
        grown = sizes.with_one(waiting[place])
        if grown.fit(len(found) + 1, first, free):
            found.append(place)
            sizes = grown
    return tuple(found)


def held(batch: Sequence[Waiting]) -> int:
    """Tokens that a batch's caches may come to hold. Shorter texts are padded, and stay until all texts have ended."""
    if not batch[0].cached:
        return 0
    longest = max(request.prompt for request in batch) + max(request.new_tokens for request in batch)
    return batch[0].limits.cache.tokens(len(batch), longest)


@dataclass(frozen=True)
class _Sizes:
    """A batch's pictures, and the tokens of its longest prompt, its longest continuation and its shortest prompt."""

    prompt: int
    new_tokens: int
    shortest: int
    pictures: int

    @classmethod
    def of(cls, request: Waiting) -> _Sizes:
        return cls(request.prompt, request.new_tokens, request.prompt, request.pictures)

    def with_one(self, request: Waiting) -> _Sizes:
        new_tokens, shortest = max(self.new_tokens, request.new_tokens), min(self.shortest, request.prompt)
        return _Sizes(max(self.prompt, request.prompt), new_tokens, shortest, self.pictures + request.pictures)

    def fit(self, texts: int, first: Waiting, free: float) -> bool:
        limits = first.limits
        context = math.inf if limits.context is None else limits.context
        if limits.uniform_length is not None and first.prompt <= limits.uniform_length:  # as all others are
            context = min(context, limits.uniform_length)
        if self.prompt + self.new_tokens > context:
            return False
        padded = texts * self.prompt
        if self.pictures > PICTURES_TOGETHER or mostly_padding(texts, self.prompt, self.shortest):
            return False
        if first.cached:
            return padded <= _MOST_READ and limits.cache.tokens(texts, self.prompt + self.new_tokens) <= free
        return limits.activations is None or limits.activations.fit(texts, self.prompt, self.prompt)


def _has_place(request: Waiting, started: Sequence[Started], policy: Policy, *, late: bool) -> bool:
    if request.heavy:
        return not any(run.heavy for run in started)
    return late or sum(run.task == request.task and not run.heavy for run in started) < policy.runs


def _free(started: Sequence[Started], limits: BatchLimits) -> float:
    taken = sum(run.tokens for run in started if run.bundle == limits.bundle)
    return math.inf if limits.room is None else limits.room - taken

"""How far chance reaches in what was measured: of one model's metric, and of two models' on the same items."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.answers.score import Outcomes, Score
from weightpager.bundle.report.interval import CONFIDENCE, UNKNOWN

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000

FEWEST = 6
"""Items that a bootstrap needs, the two made-up ones included; of perplexity, which has none, six real ones.

Five all point the same way by chance in more than one of twenty cases.
"""

_HOPELESS = 300.0
"""Nats per token above which perplexities are equally bad; twice that can still be divided."""

_AT_ONCE = 1 << 20
"""Drawn items of one sample in memory at most."""


def of_score(score: Score) -> tuple[float, float]:
    """The interval of a metric: Wilson's where each item has one answer, else by bootstrap over texts or windows.

    Words of one text hang together, so that they are drawn together.
    """
    outcomes = score.outcomes
    if score.metric == "perplexity":
        return _bootstrap(_perplexity, outcomes.sums, _counts(outcomes))
    if score.metric == "accuracy":
        return _wilson(round(score.value * score.items), score.items)
    return _bootstrap(_ratio, np.append(outcomes.sums, [1.0, 0.0]), np.append(_counts(outcomes), [1.0, 1.0]))


def of_gap(ours: Score, other: Score, dense: Score) -> tuple[float, float]:
    """What another model loses more than ours, by a paired bootstrap over the items that all were measured on.

    In points; in percent of the dense perplexity. Right and wrong answers get two made-up items more, on each of which
    one of the two alone is right: as many differences all in one direction as a sign test asks for then tell two models
    apart, and models that always agree aren't equal for sure (Agresti and Min 2005).
    """
    same = len({len(score.outcomes.counts) for score in (ours, other, dense)}) == 1
    if not same or len(ours.outcomes.counts) == 0:
        return UNKNOWN
    counts = _counts(ours.outcomes)
    if not ours.higher_is_better:
        return _bootstrap(_risen, *(score.outcomes.sums for score in (ours, other, dense)), counts)
    more = np.append(ours.outcomes.sums - other.outcomes.sums, [1.0, -1.0])
    return _bootstrap(partial(_ratio, scale=100.0), more, np.append(counts, [1.0, 1.0]))


def _bootstrap(statistic: Callable[..., Any], *samples: Floats) -> tuple[float, float]:
    """The interval of a statistic of drawn items. The last sample says how much each item counts; 0 leaves it out."""
    counting = samples[-1] > 0
    drawn = tuple(sample[counting] for sample in samples)
    items = len(drawn[-1])
    if items < FEWEST or not all(np.isfinite(sample).all() for sample in drawn):
        return UNKNOWN
    generator, at_once = np.random.default_rng(0), max(1, _AT_ONCE // items)
    resampled: list[Floats] = []
    for start in range(0, RESAMPLES, at_once):
        indices = generator.integers(0, items, (min(at_once, RESAMPLES - start), items))
        resampled.append(statistic(*(sample[indices] for sample in drawn), axis=-1))
    outside = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(resampled), [outside, 100 - outside])
    return float(low), float(high)


def _wilson(right: int, items: int) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    wide = z * math.sqrt(z * z + 4 * right * (items - right) / items)
    low, high = (2 * right + z * z - wide, 2 * right + z * z + wide)
    whole = 2 * (items + z * z)
    return (low / whole if right else 0.0), (high / whole if right < items else 1.0)


def _ratio(sums: Floats, counts: Floats, axis: int, scale: float = 1.0) -> Floats:
    return np.asarray(scale * sums.sum(axis) / counts.sum(axis))


def _perplexity(nats: Floats, counts: Floats, axis: int) -> Floats:
    return np.exp(np.minimum(_ratio(nats, counts, axis), _HOPELESS))


def _risen(ours: Floats, other: Floats, dense: Floats, counts: Floats, axis: int) -> Floats:
    """Percent of the dense perplexity that another one's is above ours."""
    first, second, start = (_perplexity(nats, counts, axis) for nats in (ours, other, dense))
    return np.asarray(100 * (second - first) / start)


def _counts(found: Outcomes) -> Floats:
    return found.counts.astype(np.float64)

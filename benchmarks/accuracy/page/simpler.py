"""Where something simpler does as well."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.accuracy.page.domains import DOMAINS, Domain
from benchmarks.accuracy.page.plot import QUANTISED, label
from benchmarks.accuracy.page.points import Point

_OURS = ("ours", "ours_private", "ours_int8", "ours_int4", "ours_private_int4", "ours_low_rank_int4")
_ONE_MASK = ("shared_mask", "shared_mask_int8", "shared_mask_int4")
_NEEDS_NO_PAGING = (*_ONE_MASK, "all_blocks_int4", "all_blocks_int2", "low_rank_int4", *QUANTISED)
_ABOUT = 1.125
"""int4 has 0.281 of the dense bytes, which a user who thinks of a quarter would still take."""

_MARGIN = 0.5
"""Points, or percent of perplexity, that may be chance where a method has one seed."""


def simpler_does(points: Sequence[Point]) -> list[str]:
    """Where a method that needs no paging does as well as ours in about as few bytes, in words.

    Methods are compared by what they lose against the dense model: those with other seeds have other dense models.
    """
    lines = []
    for domain in DOMAINS:
        own = [point for point in points if point.domain == domain.letter]
        for fraction in sorted({point.fraction for point in own if point.method in _OURS}, reverse=True):
            best = _best([point for point in own if point.fraction == fraction and point.method in _OURS], domain)
            rivals = [
                point for point in own if point.method in _NEEDS_NO_PAGING and point.fraction <= fraction * _ABOUT
            ]
            rival = _best(rivals, domain) if rivals else None
            if rival is None:
                continue
            wins = _best([best, rival], domain) is rival
            if wins or _reaches(rival, best, domain):
                lines.append(
                    f"Domain {domain.letter}, a = {fraction:g}: {label(rival)} at {rival.fraction:g} has "
                    f"{domain.metric} {_value(rival, domain)}, {label(best)} {_value(best, domain)}"
                    f"{'' if wins else _chance(rival, best)}."
                )
    return lines


def _value(point: Point, domain: Domain) -> str:
    return f"{domain.form.format(point.value())} ({domain.against_dense(point)} {'' if domain.lower else 'to '}dense)"


def _reaches(rival: Point, best: Point, domain: Domain) -> bool:
    """Whether a rival's best seed is as good as our worst; where one has a single seed, whether it is near."""
    if _one_seed(rival, best):
        return domain.lost(rival) <= domain.lost(best) + _MARGIN
    return min(domain.losses(rival)) <= max(domain.losses(best))


def _chance(rival: Point, best: Point) -> str:
    """Why a difference counts for nothing."""
    return "; with one seed, half a point may be chance" if _one_seed(rival, best) else "; seeds differ by more"


def _one_seed(*points: Point) -> bool:
    return any(len(point.seeds) == 1 for point in points)


def _best(points: Sequence[Point], domain: Domain) -> Point:
    """The one that loses least; of equal ones the last."""
    best = points[0]
    for point in points[1:]:
        if domain.lost(point) <= domain.lost(best):
            best = point
    return best

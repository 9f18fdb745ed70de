"""From what a user states to an alignment strength."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.compiler.alignment.problem import AlignmentProblem, expected_switch_blocks
from weightpager.compiler.alignment.structure_aligner import align
from weightpager.compiler.selection.alignment_target import AlignmentTarget, Point, search
from weightpager.config import parse_size
from weightpager.errors import CompileError


def smooth(strength: float) -> Point:
    """Bytes fall from 1000 to 100, the loss rises from 0 to 5."""
    share = 1.0 if math.isinf(strength) else strength / (1 + strength)
    return Point(strength, 1000 - 900 * share, 5 * share)


@given(st.floats(101, 999))
def test_the_weakest_alignment_that_switches_fast_enough(most: float) -> None:
    found, tried = search(AlignmentTarget.at_most_bytes(most), smooth)
    assert found in tried
    assert found.switch_bytes <= most
    exact = (1000 - most) / (most - 100)
    if 1e-3 < exact < 1e3:
        assert exact <= found.strength <= 1.01 * exact
    assert len(tried) <= 23


@given(st.floats(0.01, 4.99))
def test_the_strongest_alignment_that_costs_little_enough(most: float) -> None:
    found, tried = search(AlignmentTarget.at_most_loss(most), smooth)
    assert found in tried
    assert found.loss <= most
    exact = most / (5 - most)
    if 1e-3 < exact < 1e3:
        assert exact / 1.01 <= found.strength <= exact


def test_no_alignment_where_none_is_needed() -> None:
    found, tried = search(AlignmentTarget.at_most_bytes(2000), smooth)
    assert (found.strength, len(tried)) == (0.0, 1)
    found, tried = search(AlignmentTarget.at_most_loss(10), smooth)
    assert (found.strength, len(tried)) == (math.inf, 1)


def test_only_one_shared_mask_will_do() -> None:
    found, _ = search(AlignmentTarget.at_most_bytes(100), smooth)
    assert found.strength == math.inf


@pytest.mark.parametrize("most", [150.0, 500.0])
def test_one_mask_may_load_more_than_strong_alignment(most: float) -> None:
    drawn = np.random.default_rng(0)
    saliency = drawn.lognormal(size=(40, 2))
    saliency[:20] *= 3
    versions = np.full((40, 2), -1, np.int8)
    versions[:20] = [0, 1]  # the most salient blocks are each task's own
    rate = np.array([[0.0, 0.5], [0.5, 0.0]])

    def point(strength: float) -> Point:
        keep = align(AlignmentProblem(saliency, np.array([15, 15]), rate, strength, versions)).keep
        of_versions = (keep & (versions == version) for version in np.unique(versions))
        return Point(strength, 100 * sum(expected_switch_blocks(mask, rate) for mask in of_versions), 0.0)

    assert point(math.inf).switch_bytes > most
    found, _ = search(AlignmentTarget.at_most_bytes(most), point)
    assert found.switch_bytes <= most


def test_no_strength_is_measured_twice() -> None:
    tried: list[float] = []

    def only_the_strongest(strength: float) -> Point:
        tried.append(strength)
        return Point(strength, 0.0 if strength == 0.5 * 2**12 else 9.0, 0.0)

    found, points = search(AlignmentTarget.at_most_bytes(1), only_the_strongest)
    assert [point.strength for point in points] == tried
    assert tried.count(found.strength) == 1


def test_what_cannot_be_had_is_refused_with_the_least_that_can() -> None:
    with pytest.raises(CompileError, match="max_switch: expected at least 100 B, the least .* got 50 B"):
        search(AlignmentTarget.at_most_bytes(50), smooth)


@given(st.floats(1, 2**40))
def test_the_least_that_a_refusal_names_is_enough(least: float) -> None:
    def constant(strength: float) -> Point:
        return Point(strength, least, 0.0)

    with pytest.raises(CompileError) as refused:
        search(AlignmentTarget.at_most_bytes(least / 2), constant)
    (named,) = re.findall("expected at least (.*?), the least", str(refused.value))
    assert search(AlignmentTarget.at_most_bytes(parse_size(named)), constant)
    assert parse_size(named) <= max(1.01 * least, least + 1)


@given(st.integers(0, 99))
def test_a_loss_that_is_noisy_still_meets_the_target(seed: int) -> None:
    drawn = np.random.default_rng(seed)

    def noisy(strength: float) -> Point:
        point = smooth(strength)
        return Point(strength, point.switch_bytes, point.loss + drawn.normal() if strength else 0.0)

    found, _ = search(AlignmentTarget.at_most_loss(1.0), noisy)
    assert found.loss <= 1.0


def test_expected_blocks_of_a_switch() -> None:
    keep = np.array([[1, 0], [1, 1], [0, 1], [0, 1]], np.bool_)
    rate = np.array([[0.0, 0.75], [0.25, 0.0]])
    assert expected_switch_blocks(keep, rate) == 0.75 * 2 + 0.25 * 1


@given(st.floats(1e-6, 90))
def test_the_least_loss_that_a_refusal_names_is_enough(least: float) -> None:
    def constant(strength: float) -> Point:
        return Point(strength, 1.0, least)

    with pytest.raises(CompileError) as refused:
        search(AlignmentTarget.at_most_loss(least / 2), constant)
    stated = re.search(r"expected at least ([0-9.]+),", str(refused.value))
    assert stated is not None
    search(AlignmentTarget.at_most_loss(float(stated[1])), constant)


def test_a_refusal_says_what_would_help() -> None:
    with pytest.raises(CompileError, match="got 50 B; tasks of the same sparsity can share all blocks"):
        search(AlignmentTarget.at_most_bytes(50), smooth)
    with pytest.raises(CompileError, match="got 50 B; fewer recover.private_blocks make that less"):
        search(AlignmentTarget.at_most_bytes(50), smooth, "fewer recover.private_blocks make that less")

"""Intervals: put together, and how many items would tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.bundle.report.advice import holds_zero, items_to_tell, mean_interval, turned
from weightpager.bundle.report.compile_report import UNKNOWN

ends = st.floats(-1e3, 1e3)


def test_the_mean_of_equal_values_is_surer_by_the_root_of_their_number() -> None:
    low, high = mean_interval([2.0] * 4, [(0.0, 6.0)] * 4)
    assert (low, high) == pytest.approx((1.0, 4.0))
    assert mean_interval([2.0], [(0.0, 6.0)]) == (0.0, 6.0)


@given(st.lists(st.tuples(ends, ends, ends), min_size=1, max_size=8))
def test_the_mean_lies_in_its_interval(drawn: list[tuple[float, float, float]]) -> None:
    estimates = [sorted(values)[1] for values in drawn]
    low, high = mean_interval(estimates, [(min(values), max(values)) for values in drawn])
    assert low <= np.mean(estimates) + 1e-9
    assert high >= np.mean(estimates) - 1e-9
    assert turned(turned((low, high))) == (low, high)


@pytest.mark.parametrize("hostile", [math.inf, -math.inf, math.nan, 1e308])
def test_what_is_no_number_leaves_everything_open(hostile: float) -> None:
    assert holds_zero(mean_interval([hostile, 1.0], [(0.0, 0.0), UNKNOWN]))
    assert items_to_tell(hostile, UNKNOWN, 10) is None
    assert items_to_tell(1.0, (-hostile, hostile), 10) is None or hostile == 1e308


def test_as_many_items_tell_as_shrink_the_interval_to_the_difference() -> None:
    assert items_to_tell(1.0, (-1.0, 3.0), 600) == 2400  # half as wide takes four times as many
    assert items_to_tell(-1.0, (-3.0, 2.0), 600) == 5400
    assert items_to_tell(0.3, (-0.7, 1.3), 1234) == 14_000
    assert items_to_tell(0.0, (-1.0, 1.0), 600) is None

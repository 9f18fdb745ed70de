"""How much tasks share, counted another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.bundle import Bundle
from weightpager.bundle.report.page_statistics import mean_overlap, overlap, overlap_of


def test_overlap_is_the_share_of_the_next_tasks_blocks(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    kept = [set(bundle.kept_locations(task).tolist()) for task in bundle.tasks]
    wanted = [[len(a & b) / len(b) for b in kept] for a in kept]
    found = overlap(bundle)
    assert np.array_equal(found, wanted)
    assert 0 < mean_overlap(found) < 1


@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 99))
def test_overlap_is_what_a_switch_finds_in_memory(blocks: int, tasks: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    keep, weights = random.random((blocks, tasks)) < 0.5, random.integers(1, 9, blocks)
    shared = overlap_of(keep, weights)
    for a in range(tasks):
        for b in range(tasks):
            needed = weights[keep[:, b]].sum()
            found = weights[keep[:, a] & keep[:, b]].sum()
            assert shared[a, b] == (found / needed if needed else 1.0)
    np.testing.assert_allclose(overlap_of(keep), overlap_of(keep, np.full(blocks, 512)))


def test_overlap_refuses_weights_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"expected one for each of 4 blocks, got shape \(3,\)"):
        overlap_of(np.ones((4, 2), np.bool_), np.ones(3))

"""Budgets found for a wait keep that wait, whatever else a bundle holds beside pages of blocks."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightpager.bundle import Bundle
from weightpager.runtime.budget.row_share import row_share
from weightpager.simulate.sizing import PREFETCH, Sizing
from weightpager.store import StorageModel
from weightpager.trace_file import Visit


@pytest.fixture(scope="module")
def bundle(wordy_bundle: Path) -> Bundle:
    """Its rows on demand get a part of any budget that is more than the largest task's pages."""
    bundle = Bundle.open(wordy_bundle)
    assert row_share(bundle).hot_rows
    return bundle


@pytest.fixture
def sizing(bundle: Bundle) -> Sizing:
    names = list(bundle.tasks)
    visits = [Visit(names[number % len(names)], 10.0 * number) for number in range(12)]
    return Sizing(bundle, visits, StorageModel())


@pytest.mark.parametrize("mean_seconds", [0.0, 1e-4, 1e-3])
def test_the_budget_that_is_found_waits_no_longer_than_was_asked_for(sizing: Sizing, mean_seconds: float) -> None:
    budget = sizing.smallest_budget(mean_seconds)
    (found,) = (waits for waits in sizing.waits(budget) if waits.policy == PREFETCH)
    assert found.mean_ms <= 1e3 * mean_seconds


def test_a_byte_less_has_room_for_fewer_pages(sizing: Sizing, bundle: Bundle) -> None:
    budget = sizing.smallest_budget(0.0)
    assert sizing.slots(budget) == sizing.slots(None) == len(bundle.pages)
    assert sizing.slots(budget - 1) < len(bundle.pages)

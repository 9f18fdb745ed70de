"""Budgets found for a wait keep that wait, whatever else a bundle holds beside pages of blocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import Command
from weightpager.bundle import Bundle
from weightpager.runtime.budget import needs_of, smallest_budget
from weightpager.simulate.sizing import PREFETCH, REUSE, WORTH, Sizing
from weightpager.store import StorageModel
from weightpager.trace_file import Visit


@pytest.fixture(scope="module")
def bundle(wordy_bundle: Path) -> Bundle:
    """Its rows on demand get what a budget leaves behind all pages."""
    bundle = Bundle.open(wordy_bundle)
    assert needs_of(bundle).more_rows
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


def test_where_prefetching_gains_nothing_the_budget_in_which_it_would_is_found(sizing: Sizing, bundle: Bundle) -> None:
    tight = smallest_budget(bundle)
    found = sizing.prefetch_pays(tight, sizing.waits(tight))
    assert found is not None
    assert (found.spare_pages, found.saved < WORTH) == (0, True)
    assert found.budget is not None
    mean = {waits.policy: waits.mean_ms for waits in sizing.waits(found.budget)}
    assert mean[PREFETCH] < (1 - WORTH) * mean[REUSE]


def test_nothing_is_said_of_prefetching_where_all_pages_fit(sizing: Sizing) -> None:
    assert sizing.prefetch_pays(None, sizing.waits(None)) is None


def test_simulate_says_why_prefetching_gains_nothing(weightpager: Command, bundle: Bundle) -> None:
    budget = smallest_budget(bundle)
    arguments = "simulate", bundle.path, "--trace", "assistant", "--switches", 60, "--budget", budget
    said = " ".join(weightpager(*arguments).out.split())
    assert "% of the waiting: no page has room beside the largest task. It saves a tenth or more with `--budget" in said
    assert json.loads(weightpager(*arguments, "--json").out)["prefetch_pays"]["budget"] > budget

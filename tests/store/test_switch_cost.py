"""What a switch is predicted to cost, and that nothing in the arena makes it cost more than is said."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightpager.bundle import Bundle
from weightpager.store import LocalStore, StorageModel, coalesce, switch_cost


@pytest.fixture(scope="module")
def bundle(assistant_bundle: Path) -> Bundle:
    return Bundle.open(assistant_bundle)


def seconds(bundle: Bundle, pages: list[int], room: int, storage: StorageModel) -> float:
    """Of reading pages, as many as have room first."""
    store = LocalStore(bundle)
    store.close()
    reads = sum(len(coalesce(phase, store.span, bundle.page_bytes)) for phase in (pages[:room], pages[room:]))
    return storage.seconds(reads, len(pages) * bundle.page_bytes)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_no_residency_is_slower_than_the_most(bundle: Bundle, data: st.DataObject) -> None:
    tasks = list(bundle.tasks)
    to_task = data.draw(st.sampled_from(tasks))
    from_task = data.draw(st.sampled_from([None, *(task for task in tasks if task != to_task)]))
    storage = StorageModel(1e9, data.draw(st.sampled_from([0.0, 1e-6, 1e-4])))
    have = bundle.pages_of(from_task) if from_task else bundle.pages_of(to_task)[:0]
    missing = np.setdiff1d(bundle.pages_of(to_task), have).tolist()
    least = max(len(have), len(bundle.pages_of(to_task)))
    slots = data.draw(st.none() | st.integers(least, least + 8))
    room = len(missing) if slots is None else slots - len(have)
    small = data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[switch_cost.__module__], "SMALL_SWITCH_BYTES", 2**20 if small else 0)
        cost = switch_cost(bundle, from_task, to_task, storage, slots)
    assert cost.seconds == pytest.approx(seconds(bundle, missing, len(missing) if small else room, storage))
    there = data.draw(st.sets(st.sampled_from(missing), max_size=room) if missing and room else st.just(set()))
    left = [page for page in missing if page not in there]
    first = len(left) if small else room - len(there)
    assert seconds(bundle, left, first, storage) <= cost.most_seconds + 1e-12


def test_every_second_page_of_a_row_is_the_worst_that_can_be_there(bundle: Bundle) -> None:
    storage = StorageModel(1e9, 1e-3)
    pages = bundle.pages_of("animal").tolist()
    left: list[int] = []
    for page in pages:
        if page - 1 not in left or page + 1 not in pages:
            left.append(page)
    cost = switch_cost(bundle, None, "animal", storage)
    assert cost.seconds < seconds(bundle, left, len(left), storage) == pytest.approx(cost.most_seconds)


def test_a_page_that_costs_more_than_a_read_is_never_better_missing(bundle: Bundle) -> None:
    cost = switch_cost(bundle, None, "animal", StorageModel(1e6, 1e-6))
    assert cost.most_seconds == cost.seconds

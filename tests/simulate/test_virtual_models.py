"""Several bundles in virtual time read what `Models` reads, and have the same bundles awake."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightpager as wp
from weightpager.bundle import Bundle
from weightpager.runtime.sharing import SharedBounds
from weightpager.simulate.sharing_comparison import PREFETCH, SHARED, SPLIT, WHOLE, compare
from weightpager.simulate.virtual_models import VirtualModels
from weightpager.store import StorageModel
from weightpager.trace_file import Visit


def opened(paths: list[Path]) -> dict[str, Bundle]:
    return {path.stem: Bundle.open(path) for path in paths}


def virtual(paths: list[Path], budget: int | None) -> VirtualModels:
    return VirtualModels(opened(paths), budget, StorageModel())


def bounds(paths: list[Path]) -> SharedBounds:
    return SharedBounds({name: bundle.bounds for name, bundle in virtual(paths, None).bundles.items()})


def visits(paths: list[Path], count: int = 60) -> list[Visit]:
    names = [f"{name}/{task}" for name, bundle in opened(paths).items() for task in bundle.tasks]
    return [Visit(names[7 * number % len(names)], 10.0 * number) for number in range(count)]


@settings(max_examples=25, deadline=None)
@given(numbers=st.lists(st.integers(0, 100), min_size=1, max_size=40), room=st.floats(0, 1))
def test_any_sequence_reads_what_models_read(drawn_paths: list[Path], numbers: list[int], room: float) -> None:
    of = bounds(drawn_paths)
    budget = of.smallest + round(room**2 * (of.everything - of.smallest))
    simulated = virtual(drawn_paths, budget)
    with wp.Models.from_pretrained(drawn_paths, budget=budget) as models:
        tasks = list(models.tasks)
        for number in numbers:
            name = tasks[number % len(tasks)]
            with models.task(name):
                pass
            simulated.enter(*name.split("/"), 0.0)
            assert simulated.shares == models.shares
            for bundle, real in models.bundles.items():
                assert simulated.bundles[bundle].page_bytes_read == real.bytes_read


def test_a_budget_less_one_byte_is_refused_or_has_a_bundle_sleep(drawn_paths: list[Path]) -> None:
    of = bounds(drawn_paths)
    with pytest.raises(wp.BudgetError) as refused:
        virtual(drawn_paths, of.smallest - 1)
    assert refused.value.smallest == of.smallest
    for budget, sleeps in ((of.without_sleep, False), (of.without_sleep - 1, True)):
        models = virtual(drawn_paths, budget)
        for visit in visits(drawn_paths):
            models.enter(*visit.task.split("/"), visit.start)
        assert any(bundle.wakings > 1 for bundle in models.bundles.values()) == sleeps


def test_a_shared_budget_reads_no_more_than_other_ways_to_use_it(drawn_paths: list[Path]) -> None:
    of, day = bounds(drawn_paths), visits(drawn_paths)
    split = sum(bundle.least for bundle in of.bundles.values())
    found = compare(opened(drawn_paths), day, split, StorageModel())
    read = {each.policy: each.bytes_read for each in found.waits}
    assert read[SHARED] <= min(read[SPLIT], read[WHOLE])
    assert not found.too_small
    tight = compare(opened(drawn_paths), day, of.smallest, StorageModel())
    assert [each.policy for each in tight.waits] == [SHARED, PREFETCH]
    assert tight.too_small[SPLIT] == split
    whole = max(bundle.most for bundle in of.bundles.values())
    assert of.smallest < tight.too_small[WHOLE] <= whole
    everything = compare(opened(drawn_paths), day, None, StorageModel())
    assert not any(each.wakings for each in everything.waits if each.policy != WHOLE)

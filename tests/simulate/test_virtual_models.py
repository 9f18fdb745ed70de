"""Several bundles in virtual time read what `Models` reads, and have the same bundles awake."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightpager as wp
from weightpager.bundle import Bundle
from weightpager.runtime.sharing import SharedBounds
from weightpager.simulate.virtual_models import VirtualModels
from weightpager.store import StorageModel


@pytest.fixture(scope="module")
def paths(assistant_bundle: Path, writer_bundle: Path, camera_bundle: Path) -> list[Path]:
    """Bundles of different page sizes, without rows on demand: what these read depends on texts."""
    paths = [assistant_bundle, writer_bundle, camera_bundle]
    assert len({Bundle.open(path).page_bytes for path in paths}) == 3
    return paths


def virtual(paths: list[Path], budget: int | None, *, prefetch: bool = False) -> VirtualModels:
    bundles = {path.stem: Bundle.open(path) for path in paths}
    return VirtualModels(bundles, budget, StorageModel(), prefetch=prefetch)


def bounds(paths: list[Path]) -> SharedBounds:
    return SharedBounds({name: bundle.bounds for name, bundle in virtual(paths, None).bundles.items()})


@settings(max_examples=15, deadline=None)
@given(numbers=st.lists(st.integers(0, 100), min_size=1, max_size=40), room=st.floats(0, 1))
def test_any_sequence_reads_what_models_read(paths: list[Path], numbers: list[int], room: float) -> None:
    of = bounds(paths)
    budget = of.smallest + round(room * (of.everything - of.smallest))
    simulated = virtual(paths, budget)
    with wp.Models.from_pretrained(paths, budget=budget) as models:
        tasks = list(models.tasks)
        for number in numbers:
            name = tasks[number % len(tasks)]
            with models.task(name):
                pass
            simulated.enter(*name.split("/"), 0.0)
            assert simulated.shares == models.shares
            for bundle, real in models.bundles.items():
                assert simulated.bundles[bundle].page_bytes_read == real.bytes_read

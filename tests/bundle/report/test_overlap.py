"""How much tasks share, counted another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from weightpager.bundle import Bundle
from weightpager.bundle.report.overlap import mean_overlap, overlap


def test_overlap_is_the_share_of_the_next_tasks_blocks(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    kept = [set(bundle.kept_locations(task).tolist()) for task in bundle.tasks]
    wanted = [[len(a & b) / len(b) for b in kept] for a in kept]
    found = overlap(bundle)
    assert np.array_equal(found, wanted)
    assert 0 < mean_overlap(found) < 1

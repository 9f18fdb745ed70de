"""The benchmark of what tasks may drop, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from benchmarks.accuracy.kept import METHODS, compiled
from weightpager.compiler import task_file

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name != "half-layers together"]


@pytest.mark.parametrize("method", ["half-layers together", *SLOW])
def test_a_method_has_a_row_for_each_task(tmp_path: Path, method: str) -> None:
    content = tiny.writer(tmp_path)
    del content["sparsity"]
    rows = [*compiled(task_file.from_dict(content), method, 0.9, tmp_path)]
    assert [row.task for row in rows] == ["animals", "numbers"]
    assert all(row.bytes >= 0 and row.metric == "perplexity" for row in rows)
    assert all(row.units == METHODS[method]["units"] for row in rows)

"""The benchmark of what tasks may drop, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from benchmarks.accuracy.kept import compiled
from benchmarks.accuracy.kept_rows import METHODS, KeptRow, kept_table
from weightpager.compiler import task_file

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name != "half-layers together"]


@pytest.mark.parametrize("method", ["half-layers together", *SLOW])
def test_a_method_has_a_row_for_each_task(tmp_path: Path, method: str) -> None:
    content = tiny.writer(tmp_path)
    del content["sparsity"]
    rows = [*compiled("A", task_file.from_dict(content), method, 0.9, tmp_path)]
    assert [row.task for row in rows] == ["animals", "numbers"]
    assert all(row.bytes >= 0 and row.metric == "perplexity" for row in rows)
    assert all(row.units == METHODS[method]["units"] for row in rows)
    assert len({row.key for row in rows}) == 2


def test_a_table_has_a_line_for_each_method() -> None:
    def row(method: str, task: str, value: float, size: int) -> KeptRow:
        origin = {"cpu": "cpu", "command": "command", "commit": "commit"}
        return KeptRow(
            "A", 0.9, method, task, "layer", size, "accuracy", 0.5, value, size // 2, **origin, search_s=90.0
        )

    rows = [row("layers linked", "b", 0.45, 4_000_000), row("layers linked", "a", 0.5, 2_000_000)]
    text = kept_table([*rows, row("layers one by one", "a", 0.4, 1_000_000)])
    first, second = text.splitlines()[2:]
    assert first == "| layers one by one | layer | 1.00 MB | 0.800 | 0.800 | 0.50 MB | 1.5 min |"
    assert second == "| layers linked | layer | 3.00 MB | 0.950 | 0.900 | 1.50 MB | 1.5 min |"
    assert kept_table([]) == ""

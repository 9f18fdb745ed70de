"""The benchmark of whether `fit` takes the best candidate, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from benchmarks.accuracy.fit import measured
from weightpager.compiler.prepare import prepare
from weightpager.compiler.task_file.file import from_dict


@pytest.mark.slow
def test_every_candidate_has_a_row_and_one_is_taken(tmp_path: Path) -> None:
    recover = {"method": "finetune", "steps": 8, "batch": 8, "private_steps": 2}
    content = tiny.assistant(tmp_path, recover=recover, fit="110KiB")
    for key in ("sparsity", "dtype", "alignment"):
        del content[key]
    rows = [*measured("A", prepare(from_dict(content)), True, tmp_path, lambda *_: None)]
    assert [row.candidate for row in rows] == ["blocks", "private blocks", "one shared mask"]
    assert sum(row.chosen for row in rows) == 1
    assert all(0 < row.value <= 1 and row.budget == 110 * 1024 for row in rows)
    assert len({row.key for row in rows}) == 3

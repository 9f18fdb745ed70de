"""A compile that finds its own alignment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import weightpager as wp
from weightpager.bundle.report.compile_report import CompileReport, read_report
from weightpager.errors import CompileError


def compiled(folder: Path, **changes: Any) -> tuple[wp.Bundle, CompileReport]:
    content = tiny.assistant(folder, **changes)
    del content["alignment"]
    bundle = wp.compile(content, folder / "a.bundle")
    return bundle, read_report(bundle)


@pytest.mark.slow
def test_max_switch(tmp_path: Path) -> None:
    bundle, report = compiled(tmp_path, max_switch="10KiB")
    assert report.alignment is not None
    assert report.alignment > 0
    (used,) = [point for point in report.frontier if point.alignment == report.alignment]
    assert used.switch_bytes <= 10 << 10 < report.frontier[0].switch_bytes
    # Blocks that the bundle's own tables say a switch lacks, of uniform switches between four tasks.
    kept = {task: set(np.asarray(bundle.kept_locations(task)).tolist()) for task in bundle.tasks}
    lacking = [len(kept[b] - kept[a]) for a in kept for b in kept if a != b]
    assert used.switch_bytes == pytest.approx(np.mean(lacking) * bundle.block_bytes)


@pytest.mark.slow
def test_max_switch_holds_with_private_blocks(tmp_path: Path) -> None:
    recover = {"method": "finetune", "steps": 4, "batch": 8, "private_blocks": 0.1, "private_steps": 2}
    bundle, report = compiled(tmp_path, max_switch="20KiB", recover=recover)
    (used,) = [point for point in report.frontier if point.alignment == report.alignment]
    kept = {task: set(np.asarray(bundle.kept_locations(task)).tolist()) for task in bundle.tasks}
    # A task's own copy of a block is no use to the next task, nor are the others' to a task that has its own.
    lacking = [len(kept[b] - kept[a]) for a in kept for b in kept if a != b]
    assert np.mean(lacking) * bundle.block_bytes <= used.switch_bytes <= 20 << 10


@pytest.mark.slow
@pytest.mark.parametrize("recover", ["none", "finetune"])
def test_accuracy_loss(tmp_path: Path, recover: str) -> None:
    spec = {"method": recover, "steps": 4, "batch": 8}
    _, report = compiled(tmp_path, accuracy_loss=3.0, recover=spec)
    (used, *_) = [point for point in report.frontier if point.alignment == report.alignment]
    assert used.loss is not None
    assert used.loss <= 3.0


@pytest.mark.slow
def test_a_switch_that_no_alignment_makes_small_enough_is_refused(tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path, max_switch="1KiB")
    del content["alignment"]
    content["tasks"]["animal"]["sparsity"] = 0.1
    with pytest.raises(CompileError, match="max_switch: expected at least"):
        wp.compile(content, tmp_path / "a.bundle")

"""What a compile will need is told before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from weightpager.compiler import source as sources
from weightpager.compiler import task_file
from weightpager.compiler.memory_estimate import activation_bytes, check_memory, training_bytes
from weightpager.compiler.prepare import prepare
from weightpager.compiler.source import Source
from weightpager.errors import CompileError


def load(folder: Path, **changes: Any) -> Source:
    return sources.load(task_file.from_dict(tiny.assistant(folder, **changes)))


def test_a_tiny_model_fits_and_a_huge_batch_does_not(tmp_path: Path) -> None:
    check_memory(load(tmp_path), 1 << 30)
    check_memory(load(tmp_path), None)
    huge = load(tmp_path, training={"batch": 2**30})
    with pytest.raises(CompileError, match=r"training\.batch: expected .* 1024 MiB of free memory, found 1073741824 t"):
        check_memory(huge, 1 << 30)
    huge = load(tmp_path, calibration={"items": 8, "max_length": 16, "batch": 2**30})
    with pytest.raises(CompileError, match=r"calibration\.batch: expected"):
        check_memory(huge, 1 << 30)
    huge = load(tmp_path, recover={"method": "finetune", "batch": 2**30})
    with pytest.raises(CompileError, match=r"recover\.batch: expected"):
        check_memory(huge, 1 << 30)


@pytest.mark.skipif(torch.cuda.is_available(), reason="training then takes the device's memory")
def test_a_compile_says_so_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"training\.batch: expected what fits"):
        prepare(task_file.from_dict(tiny.assistant(tmp_path, training={"batch": 2**30})))


def test_the_estimate_grows_with_what_it_depends_on(tmp_path: Path) -> None:
    source = load(tmp_path)
    assert activation_bytes(source, "animal", 8) == 8 * activation_bytes(source, "animal", 1)
    # 3 layers, 16 tokens, hidden size 64, 4 heads, 2 classes
    assert activation_bytes(source, "animal", 1) == 16 * 3 * (34 * 64 + 5 * 4 * 16) + 2 * 12
    weights = {id(t): t.numel() for task in source.models for t in source.models[task].parameters()}
    assert training_bytes(source, 8, copies=0) > 12 * sum(weights.values())

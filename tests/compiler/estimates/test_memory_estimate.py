"""What a compile will need is told before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from weightpager.compiler import task_file
from weightpager.compiler.estimates.memory import (
    activation_bytes,
    check_saliency,
    check_training,
    recover_bytes,
    saliency_bytes,
    training_bytes,
)
from weightpager.compiler.model import dense_model as sources
from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.prepare import prepare
from weightpager.errors import CompileError


def load(folder: Path, **changes: Any) -> Source:
    return sources.load(task_file.from_dict(tiny.assistant(folder, **changes)))


def check(source: Source, available: int | None) -> None:
    check_training(source, available)
    check_saliency(source, available, moves=source.task_file.reorder)


def test_a_tiny_model_fits_and_a_huge_batch_does_not(tmp_path: Path) -> None:
    check(load(tmp_path), 1 << 30)
    check(load(tmp_path), None)
    huge = load(tmp_path, training={"batch": 2**30})
    with pytest.raises(CompileError, match=r"training\.batch: expected .* 1024 MiB of free memory, found 1073741824 t"):
        check(huge, 1 << 30)
    huge = load(tmp_path, calibration={"items": 8, "max_length": 16, "batch": 2**30})
    with pytest.raises(CompileError, match=r"calibration\.batch: expected"):
        check(huge, 1 << 30)
    huge = load(tmp_path, recover={"method": "finetune", "batch": 2**30})
    with pytest.raises(CompileError, match=r"recover\.batch: expected"):
        check(huge, 1 << 30)


def test_reordering_counts_what_all_tasks_hold_at_once(tmp_path: Path) -> None:
    source = load(tmp_path)
    elements = sum(info.grid.out_features * info.grid.in_features for info in source.paged)
    tasks = len(source.task_file.tasks)
    held = saliency_bytes(source, moves=True) - saliency_bytes(source, moves=False)
    assert held == 4 * elements * (tasks - 1)
    check_saliency(source, saliency_bytes(source, moves=True) + activation_bytes(source, "animal", 32), moves=True)
    expected = r"saliency: expected .* found gradient of 4 tasks at once, .*; set reorder: false"
    with pytest.raises(CompileError, match=expected):
        check_saliency(source, saliency_bytes(source, moves=True) - 1, moves=True)
    with pytest.raises(CompileError, match="found gradient of one task at a time, .*; take a smaller model$"):
        check_saliency(source, saliency_bytes(source, moves=False) - 1, moves=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="training then takes the device's memory")
def test_a_compile_says_so_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"training\.batch: expected what fits"):
        prepare(task_file.from_dict(tiny.assistant(tmp_path, training={"batch": 2**30})))


def test_the_estimate_grows_with_what_it_depends_on(tmp_path: Path) -> None:
    source = load(tmp_path)
    assert activation_bytes(source, "animal", 8) == 8 * activation_bytes(source, "animal", 1)
    weights = {id(t): t.numel() for task in source.models for t in source.models[task].parameters()}
    assert training_bytes(source, 8, copies=0) > 12 * sum(weights.values())


@pytest.mark.parametrize(
    ("low", "short", "hidden", "neuron"), [(False, 128, 54, 16), (True, 128, 54, 8), (True, 15, 43, 8)]
)
def test_activations_depend_on_precision_and_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, low: bool, short: int, hidden: int, neuron: int
) -> None:
    monkeypatch.setattr("weightpager.compiler.estimates.memory.multiplies_in_bfloat16", lambda _: low)
    monkeypatch.setattr("weightpager.compiler.estimates.memory.SHORT", short)
    source = load(tmp_path)
    config = source.models["animal"].config
    # 3 layers, 16 tokens, hidden size 64, 100 neurons, 4 heads, 2 classes
    kept = hidden * 64 + neuron * 100
    assert config._attn_implementation == "sdpa"
    assert activation_bytes(source, "animal", 1) == 16 * 3 * kept + 2 * 12
    config._attn_implementation = "eager"
    assert activation_bytes(source, "animal", 1) == 16 * 3 * (kept + 5 * 4 * 16) + 2 * 12


def test_a_model_that_does_not_state_its_neurons_has_four_to_a_hidden_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager.compiler.estimates.memory.multiplies_in_bfloat16", lambda _: False)
    source = load(tmp_path)
    vars(source.models["animal"].config)["intermediate_size"] = None  # as GPT-Neo's does
    assert activation_bytes(source, "animal", 1) == 16 * 3 * (54 * 64 + 16 * 4 * 64) + 2 * 12


def test_windows_of_a_language_model_are_measured_few_at_a_time(tmp_path: Path) -> None:
    source = sources.load(task_file.from_dict(tiny.writer(tmp_path, calibration={"max_length": 64, "batch": 1000})))
    lengths = {name: source.task_file.max_length_of(name) for name in source.models}
    at_once = max(activation_bytes(source, name, 2048 // length) for name, length in lengths.items())
    check_saliency(source, saliency_bytes(source, moves=False) + at_once, moves=False)
    with pytest.raises(CompileError, match=r"calibration\.batch"):
        check_saliency(source, saliency_bytes(source, moves=False) + at_once - 1, moves=False)


def test_tasks_that_are_added_need_no_room_for_training_the_model(tmp_path: Path) -> None:
    for recover in ("none", "finetune"):
        source = load(tmp_path, recover={"method": recover, "batch": 1}, training={"batch": 1})
        paged = sum(4 * info.grid.out_features * info.grid.in_features for info in source.paged)
        whole = training_bytes(source, 1, copies=1) - training_bytes(source, 1, copies=0)
        activations = max(activation_bytes(source, task, 1) for task in source.models)
        copies = len(source.models) if recover == "none" else 7
        check_training(source, whole + copies * paged + activations, adds=True)
        with pytest.raises(CompileError, match="batch: expected what fits"):
            check_training(source, whole + copies * paged + activations - 1, adds=True)
        with pytest.raises(CompileError, match=r"training\.batch: expected what fits"):
            check_training(source, 3 * whole - 1)


def test_recovery_counts_the_copies_that_it_makes(tmp_path: Path) -> None:
    def needed(compare: str = "none", **recover: Any) -> int:
        return recover_bytes(load(tmp_path, compare=compare, recover={"method": "finetune", "batch": 1, **recover}))

    source = load(tmp_path)
    paged = sum(4 * info.grid.out_features * info.grid.in_features for info in source.paged)
    whole = sum(
        4 * size for size in {id(t): t.numel() for m in source.models.values() for t in m.parameters()}.values()
    )
    activations = max(activation_bytes(source, task, 1) for task in source.models)
    assert needed(patience=0) == 4 * whole + paged + activations
    assert needed() - needed(patience=0) == whole
    assert needed(private_blocks=0.1) == max(needed(), whole + 7 * paged + activations)
    assert needed(low_rank=2) == needed(private_blocks=0.1)
    # The sparse model waits while the dense one is trained as long.
    assert needed("dense", patience=0) == 5 * whole + paged + activations

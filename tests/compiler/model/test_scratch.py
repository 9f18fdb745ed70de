"""Tensors that lie in mapped files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import weightpager as wp
from weightpager.bundle import Bundle
from weightpager.compiler.model import checkpoint as rooms
from weightpager.compiler.model.checkpoint import IN_MEMORY, Scratch, widen
from weightpager.errors import CompileError


@pytest.fixture(autouse=True)
def _all_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "_LEAST", 1)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_what_is_held_has_the_same_values_and_leaves_no_file(tmp_path: Path, dtype: torch.dtype | None) -> None:
    values = torch.arange(24, dtype=torch.bfloat16).view(4, 6).T
    for scratch in (IN_MEMORY, Scratch(tmp_path / "new")):
        found = scratch.hold(values, dtype)
        assert found.dtype == (dtype or torch.bfloat16)
        assert torch.equal(found.float(), values.float())
    assert list((tmp_path / "new").iterdir()) == []


def test_in_memory_the_tensor_itself_is_held(tmp_path: Path) -> None:
    values = torch.ones(3)
    assert IN_MEMORY.hold(values) is values
    found = Scratch(tmp_path).hold(values)
    found.zero_()
    assert values.sum() == 3


def test_small_and_empty_tensors_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "_LEAST", 16)
    for values in (torch.ones(3), torch.ones(0)):
        assert Scratch(tmp_path).hold(values) is values


def test_a_full_storage_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CompileError, match="No space left"):
        Scratch(tmp_path).hold(torch.ones(8))


def test_modules_are_widened_over_the_same_parameters(tmp_path: Path) -> None:
    first, second = torch.nn.Linear(4, 4).bfloat16(), torch.nn.Linear(4, 4)
    wanted = first.weight.detach().float()
    second.weight = first.weight
    weight = first.weight
    widen([first, second], Scratch(tmp_path))  # type: ignore[list-item]
    assert first.weight is second.weight is weight
    assert torch.equal(weight.detach(), wanted)
    assert second.bias.dtype == torch.float32


def ids(bundle: Bundle) -> bytes:
    return bundle.index.ids.tobytes() + bundle.pages.signatures.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "recover", "reorder"), [("bfloat16", "none", True), ("int4", "closed-form", False)])
def test_a_model_on_disk_is_compiled_as_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, recover: str, reorder: bool
) -> None:
    """Sums in as many passes as there are weights, too."""
    task_file = tiny.writer(tmp_path, dtype=dtype, recover={"method": recover}, reorder=reorder, compare="none")
    usual = wp.compile(task_file, out=tmp_path / "usual.bundle", cache=False)
    made: list[Path] = []

    def on_disk(_source: Any, folder: Path, _available: int, **_: Any) -> Scratch:
        made.append(folder)
        return Scratch(folder)

    monkeypatch.setattr("weightpager.compiler.prepare.choose_scratch", on_disk)
    monkeypatch.setattr("weightpager.compiler.memory_estimate._room", lambda _sums, _left: 1)
    found = wp.compile(task_file, out=tmp_path / "found.bundle", cache=False)
    assert made
    assert ids(found) == ids(usual)
    assert (found.path / "resident.safetensors").read_bytes() == (usual.path / "resident.safetensors").read_bytes()

"""Checkpoints that any safetensors reader and the fastest read understand alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from weightpager.errors import StoreError
from weightpager.machine.storage import ALIGNMENT
from weightpager_lab.contest.rivals.assets import open_checkpoint, write_checkpoint
from weightpager_lab.direct_reads import DirectReader, new_buffer

TENSORS = {
    "head": torch.arange(7, dtype=torch.float32),
    "blocks": torch.arange(2 * 4096, dtype=torch.uint8).view(2, 4096),
    "ids": torch.tensor([[1, 2], [3, 4]], dtype=torch.int64),
    "norm": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
    "numbers": torch.ones(64, 32, dtype=torch.int8),
    "scalar": torch.tensor(5, dtype=torch.int32),
    "lone": torch.tensor(6, dtype=torch.int32).expand(1),
}


def test_a_file_is_ordinary_safetensors(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path / "a.safetensors", TENSORS)
    read = load_file(written.path)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    assert written.places["blocks"].start % ALIGNMENT == 0
    assert written.places["numbers"].start % 64 == 0
    assert open_checkpoint(written.path) == written


@pytest.mark.parametrize("threads", [1, 4])
def test_a_read_into_memory_shows_the_same_tensors(tmp_path: Path, threads: int) -> None:
    many = TENSORS | {"large": torch.randn(3 << 18)}  # several pieces
    file = write_checkpoint(tmp_path / "a.safetensors", many)
    buffer = memoryview(new_buffer(file.bytes))
    reader = DirectReader(threads)
    assert reader.read(file.path, buffer) == file.bytes
    views = file.views(buffer)
    assert all(torch.equal(views[name], many[name]) for name in many)
    blocks = file.places["blocks"]
    assert reader.read(file.path, buffer, blocks.start, blocks.end - blocks.start) == 2 * 4096
    assert bytes(buffer[: 2 * 4096]) == many["blocks"].numpy().tobytes()
    reader.close()


def test_what_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path / "a.safetensors", TENSORS)
    buffer = memoryview(new_buffer(1 << 20))
    reader = DirectReader(2)
    with pytest.raises(StoreError, match="cannot open"):
        reader.read(tmp_path / "none", buffer)
    with pytest.raises(StoreError, match="expected 1048576 bytes"):
        reader.read(file.path, buffer, 0, 1 << 20)
    reader.close()

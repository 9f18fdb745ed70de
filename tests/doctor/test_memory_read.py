"""How fast memory is read."""

from __future__ import annotations

import pytest
import torch

from weightpager.doctor import storage
from weightpager.machine.memory import Memory


@pytest.mark.parametrize(
    ("available", "limit", "size"),
    [(8 << 30, None, 256 << 20), (1 << 30, None, 128 << 20), (8 << 30, 512 << 20, 64 << 20), (1 << 20, None, 1 << 20)],
)
def test_a_small_box_is_measured_with_less(available: int, limit: int | None, size: int) -> None:
    assert storage.read_bytes(Memory(8 << 30, available, limit)) == size


def test_reading_leaves_torchs_threads_alone() -> None:
    before = torch.get_num_threads()
    measured = storage.kernel_read_bandwidth(1 << 20, before + 1, repeats=2)
    assert torch.get_num_threads() == before
    assert (measured.total_bytes, measured.threads, len(measured.seconds)) == (1 << 20, before + 1, 2)


def test_without_the_native_module_numpy_reads_and_is_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "NATIVE", ())
    measured = storage.kernel_read_bandwidth(1 << 20, 2, repeats=2)
    assert "numpy" in measured.doubt
    assert len(measured.seconds) == 2

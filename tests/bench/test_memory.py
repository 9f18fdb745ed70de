"""Memory as the kernel tells it, under the limits of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from weightpager.bench import memory_read
from weightpager.bench.control_group import Hierarchy
from weightpager.bench.kernel_choice import REFERENCE
from weightpager.bench.memory import Memory, group_limit, parse_memory, read_memory_sizes

MEMINFO = """MemTotal:        1024000 kB
MemFree:          100000 kB
MemAvailable:     512000 kB
HugePages_Total:       0
"""


def test_sizes_are_read() -> None:
    assert parse_memory(MEMINFO, None) == Memory(1024000 << 10, 512000 << 10, None)
    assert parse_memory("", None) == Memory(None, None, None)


@pytest.mark.parametrize(
    ("limit", "said", "usable"),
    [
        (1 << 62, None, 512000 << 10),  # what version 1 says where there is no limit
        (768 << 20, 768 << 20, 512000 << 10),
        (256 << 20, 256 << 20, 256 << 20),
    ],
)
def test_only_a_lower_limit_counts(limit: int, said: int | None, usable: int) -> None:
    found = parse_memory(MEMINFO, limit)
    assert (found.limit_bytes, found.usable_bytes) == (said, usable)


def test_a_group_is_under_the_limits_around_it(tmp_path: Path) -> None:
    own = tmp_path / "outer/inner"
    own.mkdir(parents=True)
    (own / "memory.max").write_text("max\n")
    assert group_limit(Hierarchy(2, tmp_path, own)) is None
    (tmp_path / "outer/memory.max").write_text("4096\n")
    assert group_limit(Hierarchy(2, tmp_path, own)) == 4096


def test_version_1_tells_the_tightest_limit_itself(tmp_path: Path) -> None:
    assert group_limit(Hierarchy(1, tmp_path, tmp_path)) is None
    (tmp_path / "memory.stat").write_text("cache 1\nhierarchical_memory_limit 8192\nhierarchical_memsw_limit 9\n")
    assert group_limit(Hierarchy(1, tmp_path, tmp_path)) == 8192


def test_this_machine_has_memory() -> None:
    found = read_memory_sizes()
    assert found.total_bytes is not None
    assert found.usable_bytes is not None
    assert 0 < found.usable_bytes <= found.total_bytes


@pytest.mark.parametrize(
    ("available", "limit", "size"),
    [(8 << 30, None, 256 << 20), (1 << 30, None, 128 << 20), (8 << 30, 512 << 20, 64 << 20), (1 << 20, None, 1 << 20)],
)
def test_a_small_box_is_measured_with_less(available: int, limit: int | None, size: int) -> None:
    assert memory_read.probe_bytes(Memory(8 << 30, available, limit)) == size


def test_reading_leaves_torchs_threads_alone() -> None:
    before = torch.get_num_threads()
    measured = memory_read.kernel_read_bandwidth(1 << 20, before + 1, repeats=2)
    assert torch.get_num_threads() == before
    assert (measured.total_bytes, measured.threads, len(measured.seconds)) == (1 << 20, before + 1, 2)


def test_without_the_native_module_numpy_reads_and_is_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_read, "available", lambda: (REFERENCE,))
    measured = memory_read.kernel_read_bandwidth(1 << 20, 2, repeats=2)
    assert "numpy" in measured.doubt
    assert len(measured.seconds) == 2

"""What is said of a machine, and reads that go to its disk rather than to memory."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.doctor import machine
from weightpager.doctor.machine import Bandwidth, direct_read_bandwidth, memory_read_bandwidth
from weightpager.errors import ConfigError, StoreError

BLOCK = 64 << 10
TOTAL = 16 * BLOCK


@pytest.fixture(scope="module")
def file(disk: Path) -> Path:
    """A file with no holes on a local disk."""
    path = disk / "blocks"
    path.write_bytes(os.urandom(TOTAL))
    return path


def test_median_and_spread() -> None:
    measured = Bandwidth(total_bytes=600, block_bytes=6, threads=1, seconds=(1.0, 3.0, 2.0))
    assert (measured.median, measured.spread) == (300, (200, 600))


@pytest.mark.parametrize("threads", [1, 3])
def test_direct_reads_come_from_the_disk(file: Path, threads: int) -> None:
    file.read_bytes()  # warm it: what is measured must be cold all the same
    measured = direct_read_bandwidth(file, TOTAL, BLOCK, threads, repeats=3)
    assert measured.doubt == ""
    assert len(measured.seconds) == 3
    assert measured.spread[0] <= measured.median <= measured.spread[1]


@given(blocks=st.integers(1, 40), threads=st.integers(1, 8))
def test_the_threads_read_each_block_once(blocks: int, threads: int) -> None:
    with tempfile.NamedTemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        offsets: list[int] = []
        patch.setattr(machine, "_read_block", lambda descriptor, buffer, offset: offsets.append(offset))
        patch.setattr(os, "O_DIRECT", 0)
        machine._read_direct(Path(file.name), blocks * BLOCK, BLOCK, threads)
    assert sorted(offsets) == [block * BLOCK for block in range(blocks)]


def test_a_file_in_memory_is_doubted(memory_file_system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_DIRECT", 0)  # which tmpfs refuses before Linux 6.6
    with tempfile.NamedTemporaryFile(dir=memory_file_system) as file:
        file.write(bytes(BLOCK))
        file.flush()
        measured = direct_read_bandwidth(Path(file.name), BLOCK, BLOCK, repeats=2)
    assert measured.doubt.count("keeps its files in memory") == 1
    assert "not direct" in measured.doubt


def test_reads_that_are_not_direct_are_doubted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "O_DIRECT", 0)
    measured = direct_read_bandwidth(file, TOTAL, BLOCK, repeats=2)
    assert measured.doubt == f"not direct: the reads left {TOTAL} bytes in the page cache"


def test_a_file_system_without_direct_reads_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match="its file system has no O_DIRECT"):
        machine._read_direct(file, TOTAL, BLOCK, 1)


@pytest.mark.parametrize(
    ("total", "block", "threads", "message"),
    [
        (TOTAL, 1000, 1, "block_bytes: expected a multiple of 4096, got 1000"),
        (TOTAL, 0, 1, "block_bytes"),
        (TOTAL + 4096, BLOCK, 1, "total_bytes: expected a multiple of block_bytes"),
        (0, BLOCK, 1, "total_bytes"),
        (TOTAL, BLOCK, 0, "threads: expected at least one"),
        (TOTAL + BLOCK, BLOCK, 1, f"expected at least {TOTAL + BLOCK} bytes, got {TOTAL}"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(file: Path, total: int, block: int, threads: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        direct_read_bandwidth(file, total, block, threads)


def test_holes_are_refused(disk: Path) -> None:
    path = disk / "holes"
    with path.open("wb") as file:
        file.truncate(TOTAL)
    with pytest.raises(ConfigError, match="it has holes"):
        direct_read_bandwidth(path, TOTAL, BLOCK)


def test_memory_is_read() -> None:
    measured = memory_read_bandwidth(1 << 20, threads=2, repeats=3)
    assert measured.median > 0
    assert (measured.threads, len(measured.seconds)) == (2, 3)

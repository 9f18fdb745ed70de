import mmap
from pathlib import Path

import pytest

from weightpager.machine.process_memory import forget_peak, peak_memory, resident_memory

SIZE = 64 << 20


def test_the_peak_is_forgotten() -> None:
    if not forget_peak():
        pytest.skip("the system doesn't count, or doesn't let us")
    before = peak_memory()
    assert before is not None
    block = mmap.mmap(-1, SIZE)  # the heap may reuse pages that are resident already
    block.write(b"x" * SIZE)
    high = peak_memory()
    assert high is not None
    assert high >= before + SIZE // 2
    block.close()
    assert (peak_memory() or 0) > high - SIZE // 4  # Linux counts in lots
    assert forget_peak()
    assert (peak_memory() or high) < high - SIZE // 2


@pytest.mark.parametrize("status", [None, "", "VmHWM:\n", "VmHWM: many kB\n"])
def test_what_does_not_count_says_none(tmp_path: Path, status: str | None) -> None:
    if status is not None:
        (tmp_path / "status").write_text(status)
    assert peak_memory(tmp_path) is None
    assert resident_memory(tmp_path) is None


def test_memory_is_read_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name: x\nVmHWM:\t    1234 kB\nVmRSS:\t    1000 kB\n")
    assert peak_memory(tmp_path) == 1234 << 10
    assert resident_memory(tmp_path) == 1000 << 10


def test_where_nothing_can_be_forgotten(tmp_path: Path) -> None:
    assert not forget_peak(tmp_path / "none")

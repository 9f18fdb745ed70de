import mmap
from pathlib import Path

import pytest

from weightpager.machine.memory import forget_peak, own_memory, peak_memory, resident_memory

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
    assert own_memory(tmp_path) is None


def test_memory_is_read_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name: x\nVmHWM:\t    1234 kB\nVmRSS:\t    1000 kB\nRssAnon:\t  900 kB\n")
    assert peak_memory(tmp_path) == 1234 << 10
    assert resident_memory(tmp_path) == 1000 << 10
    assert own_memory(tmp_path) == 900 << 10


def test_a_mapped_file_is_no_memory_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mapped").write_bytes(b"x" * SIZE)
    before = resident_memory(), own_memory()
    if None in before:
        pytest.skip("the system doesn't count")
    with (tmp_path / "mapped").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:: mmap.PAGESIZE] == b"x" * (SIZE // mmap.PAGESIZE)
        after = resident_memory(), own_memory()
    assert after[0] - before[0] >= SIZE // 2  # type: ignore[operator]
    assert after[1] - before[1] < SIZE // 2  # type: ignore[operator]


def test_where_nothing_can_be_forgotten(tmp_path: Path) -> None:
    assert not forget_peak(tmp_path / "none")
